"""Measure the loader on shards in an object store behind a slow link, beside the same shards on this disk.

    python -m bench.store FOLDER --proxy slow_store.py     # FOLDER with JPEGImages/ and SegmentationClass/

The store is moto's S3 server, or with --nginx an nginx that serves the folder over HTTP. moto needs 36 ms of CPU for a
request, nginx next to none, which leaves the CPUs to what is measured.

The proxy is a script with the options LISTEN_PORT STORE_PORT --latency-ms --mbit --drop --stall. It delays, limits and
breaks connections, and prints {'requests': ...} when it is terminated. Each photo is stored several times under other
names. Every case reads two epochs with an empty cache; printed are the seconds to the first batch, the images a second
of each epoch, requests, and the times that a block was fetched in an epoch.
"""

import argparse
import ast
import hashlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.cache.client import NodeCache
from pipeline.loading.loader import Stream, loader
from pipeline.shards.read import open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards

BUCKET = "bench"


def write(folder: Path, dest: Path, num: int) -> None:
    """Write `num` samples of the folder's pairs, in turn."""
    labels = sorted((folder / "SegmentationClass").glob("*.png"))
    pairs = {f"{number:05d}": labels[number % len(labels)] for number in range(num)}

    def load(key: str) -> Sample:
        label = pairs[key]
        photo = folder / "JPEGImages" / f"{label.stem}.jpg"
        return Sample.checked(key, photo.read_bytes(), np.array(Image.open(label)))

    classes = [str(number) for number in range(21)]
    write_shards(list(pairs), load, dest, split="train", classes=classes, samples_per_shard=500, seed=0)


@contextmanager
def store(folder: Path) -> Iterator[int]:
    """Serve a folder as s3://bench/train on the port given."""
    port = free_port()
    moto = Path(sys.executable).with_name("moto_server")
    command = [str(moto), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            from pyarrow import fs

            os.environ |= {
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
            }
            system = fs.S3FileSystem(
                endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True
            )
            system.create_dir(BUCKET)
            fs.copy_files(str(folder), f"{BUCKET}/train", fs.LocalFileSystem(), system)
            yield port
        finally:
            server.terminate()


@contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """Serve a folder as http://127.0.0.1:PORT/train/ on the port given."""
    port = free_port()
    with tempfile.TemporaryDirectory() as own:
        Path(own, "train").symlink_to(folder.absolute())
        server = f"listen 127.0.0.1:{port}; root {own}; keepalive_requests 1000000;"
        temporary = "".join(
            f"{kind}_temp_path {own}/{kind}; "
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        http = f"access_log off; {temporary} server {{ {server} }}"
        config = f"user root; daemon off; pid {own}/pid; events {{}} http {{ {http} }}"
        Path(own, "nginx.conf").write_text(config)
        with subprocess.Popen(["nginx", "-p", own, "-c", "nginx.conf", "-e", "stderr"]) as server:
            try:
                wait_for(port)
                yield port
            finally:
                server.terminate()


@contextmanager
def proxy(script: Path, store_port: int, *options: str) -> Iterator[tuple[int, dict[str, int]]]:
    """Open a slow way to the store; yield its port, and a dict that afterwards has what the proxy counted."""
    port, counts = free_port(), {}
    command = [sys.executable, str(script), str(port), str(store_port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_for(port)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        try:
            yield port, counts
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.stdout
        counts |= ast.literal_eval(process.stdout.read())


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def wait_for(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)


def measure(where: str, batch_size: int, workers: int, order: str, cache: NodeCache, epochs: int) -> None:
    """Print the measures of a case; run in a process of its own."""
    torch.set_num_threads(1)
    begun_s = time.perf_counter()
    shards = open_shards(where, node_cache=cache)
    stream = Stream(shards, batch_size, seed=1, by_blocks=order == "blocks")
    steps, digest, times, pixels = len(shards) // batch_size, hashlib.sha256(), [], 0
    for number, batch in enumerate(loader(stream, range(epochs * steps), workers)):
        digest.update("".join(batch.keys).encode())
        pixels += int(batch.image[0, 0, 0].sum())
        if number == 0 or (number + 1) % steps == 0:
            times.append(time.perf_counter() - begun_s)
    rates = [
        steps * batch_size / (end - start) for start, end in zip([0, *times[1:]], times[1:], strict=False)
    ]
    # Where other work shares the CPUs, their time compares better than the clock's
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(usage.ru_utime + usage.ru_stime for usage in used)
    print(
        f"first batch {times[0]:5.2f} s  images/s {' '.join(f'{rate:6.0f}' for rate in rates)}  "
        f"{cpu_s:.1f} s of CPU  keys {digest.hexdigest()[:8]} pixels {pixels}  "
        f"blocks {len(shards.layout.first_sample) - 1}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--proxy", type=Path, required=True)
    parser.add_argument("--nginx", action="store_true", help="in place of moto")
    parser.add_argument("--shards", type=Path, help="keep them here, for a second run")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[10, 30, 100])
    parser.add_argument("--mbit", type=float, default=800)
    parser.add_argument("--drop", type=float, default=0)
    parser.add_argument("--stall", type=float, default=0)
    parser.add_argument("--orders", nargs="+", default=["samples", "blocks"])
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        where, order, folder, gigabytes = given.case
        measure(
            where, given.batch_size, given.workers, order, NodeCache(folder, float(gigabytes)), given.epochs
        )
        return
    with tempfile.TemporaryDirectory() as scratch:
        shards = given.shards or Path(scratch, "train")
        if not shards.exists():
            write(given.folder, shards, given.samples)
        size = sum(path.stat().st_size for path in shards.iterdir()) / 1e9
        cache = Path(scratch, "cache")

        def case(where: str, order: str, gigabytes: float) -> None:
            shutil.rmtree(cache, ignore_errors=True)
            command = [sys.executable, "-m", "bench.store", *sys.argv[1:]]
            subprocess.run([*command, "--case", where, order, str(cache), str(gigabytes)], check=True)

        with (nginx if given.nginx else store)(shards) as port:
            for order in given.orders:
                print(f"disk, {order}:", flush=True)
                case(str(shards), order, 1)
                for latency_ms in given.latency_ms:
                    options = ["--latency-ms", str(latency_ms), "--mbit", str(given.mbit)]
                    options += ["--drop", str(given.drop), "--stall", str(given.stall)]
                    with proxy(given.proxy, port, *options) as (slow, counts):
                        print(f"store, {order}, {latency_ms:g} ms:", flush=True)
                        where = f"http://127.0.0.1:{slow}/train" if given.nginx else f"s3://{BUCKET}/train"
                        case(where, order, 2 * size if order == "samples" else size / 10)
                    print(f"  {counts}, split {size:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
