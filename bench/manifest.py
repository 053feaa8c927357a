"""Time the manifest of a million samples: write it, open it, and deal the samples out to 64 ranks.

    python -m bench.manifest            # --samples 1000000 --ranks 64 --samples-per-shard 500

The records are those that workers leave of finished shards, with random rows made by columns. The shards are hard links
to one file of 256 KiB, since only their number counts: each is listed and hashed like a real one. Printed are the
seconds of each step, wall clock and CPU, and the peak memory of the process.
"""

import argparse
import hashlib
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.loading.sampler import Order
from pipeline.shards import manifest
from pipeline.shards.read import open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import Plan, publish
from pipeline.storage import Folder

NUM_CLASSES, SHARD_BYTES, BATCH_PER_RANK = 21, 2**18, 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--samples-per-shard", type=int, default=500)
    parser.add_argument("--ranks", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "work" / "new").mkdir(parents=True)
        plan = Plan(
            _load, str, "train", _names(NUM_CLASSES), root / "work", str(root / "work" / "new"), "", ""
        )
        with timed("records written (workers' part)"):
            num_shards = write_records(plan, arguments.samples, arguments.samples_per_shard)
        with timed("manifest written"):
            publish(plan, Folder(str(root / "train")), num_shards, allow_partial=False, about={})
        print(f"  {(root / 'train' / manifest.MANIFEST).stat().st_size / 2**20:.0f} MiB, {num_shards} shards")
        with timed("opened, every shard hashed"):
            open_shards(root / "train", cache=root / "cache")
        with timed("opened again, nothing hashed"):
            shards = open_shards(root / "train", cache=root / "cache")
        assert len(shards) == arguments.samples
        with timed(f"one epoch dealt out to {arguments.ranks} ranks, one after the other"):
            deal(len(shards), arguments.ranks)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


@contextmanager
def timed(what: str) -> Iterator[None]:
    start, cpu = time.perf_counter(), time.process_time()
    yield
    print(
        f"{what:52} {time.perf_counter() - start:6.2f} s, {time.process_time() - cpu:6.2f} s of CPU",
        flush=True,
    )


def write_records(plan: Plan, num_samples: int, per_shard: int) -> int:
    """Write records and shards for the samples; return the number of shards."""
    plan.record(0).parent.mkdir()
    content = os.urandom(SHARD_BYTES)
    digest = hashlib.sha256(content).hexdigest()
    (plan.work / "content").write_bytes(content)
    rng = np.random.default_rng(0)
    starts = range(0, num_samples, per_shard)
    for number, start in enumerate(starts):
        name = f"shard-{number:06d}.tar"
        os.link(plan.work / "content", Path(plan.staging, name))
        shards = [{"name": name, "bytes": SHARD_BYTES, "sha256": digest}]
        header = {"format": manifest.FORMAT, "split": "train", "classes": plan.classes, "shards": shards}
        table = rows(rng, name, range(start, min(start + per_shard, num_samples)))
        manifest.write(plan.record(number), table, header | {"refused": []})
    (plan.work / "content").unlink()
    return len(starts)


def rows(rng: np.random.Generator, shard: str, ids: range) -> pa.Table:
    num = len(ids)
    numbers = {
        "jpg_offset": np.arange(num) * 512 + 512,
        "png_offset": np.arange(num) * 512 + 768,
        "jpg_size": rng.integers(1, 256, num),
        "png_size": rng.integers(1, 256, num),
        "height": np.full(num, 375),
        "width": np.full(num, 500),
        "void_pixels": rng.integers(0, 9000, num),
    }
    columns = {name: pa.array(values) for name, values in numbers.items()}
    columns |= {"key": pa.array([f"image_{i:09d}" for i in ids])}
    columns |= {
        name: pa.array([text] * num) for name, text in (("split", "train"), ("shard", shard), ("mode", "RGB"))
    }
    for name in ("jpg_sha256", "png_sha256", "pixel_sha256"):
        columns[name] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), num, [None, pa.py_buffer(rng.bytes(32 * num))]
        )
    counts = rng.integers(0, 9000, num * NUM_CLASSES) * (rng.random(num * NUM_CLASSES) < 0.15)
    columns["class_pixels"] = pa.ListArray.from_arrays(np.arange(num + 1) * NUM_CLASSES, counts)
    return pa.table([columns[name] for name in manifest.SCHEMA.names], names=manifest.SCHEMA.names).cast(
        manifest.SCHEMA
    )


def deal(num_samples: int, ranks: int) -> None:
    """Compute every batch of one epoch of every rank."""
    order, batch_size = Order(num_samples, seed=0), BATCH_PER_RANK * ranks
    steps = range(num_samples // batch_size)
    dealt = sum(len(order.step(step, batch_size)[rank::ranks]) for rank in range(ranks) for step in steps)
    assert dealt == len(steps) * batch_size


def _names(number: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(number))


def _load(key: str) -> Sample:
    raise AssertionError(f"nothing is loaded here: {key}")


if __name__ == "__main__":
    main()
