"""The latency of `fcn serve` under many clients at once, beside the bare forward pass of the same photos.

    python -m bench.serve MODEL PHOTOS [--clients 50] [--minutes 5]

Every client sends a photo, waits for the label map, and sends the next one, to a server on 127.0.0.1 that this starts.
The server works on one photo at a time, so the least latency of N clients is N times that of the bare pass.
"""

import argparse
import io
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from pipeline.models.predictor import Predictor

BARE_S = 20
TIMEOUT_S = 300  # of an answer


def bare(model: Path, photos: list[bytes]) -> list[float]:
    """Return the seconds of each forward pass, from decoded pixels to the label map, in BARE_S seconds."""
    predictor = Predictor.load(model)
    decoded = [np.asarray(Image.open(io.BytesIO(photo)).convert("RGB")) for photo in photos]
    predictor.label_map(decoded[0])
    end, seconds = time.monotonic() + BARE_S, []
    while time.monotonic() < end:
        start = time.monotonic()
        predictor.label_map(decoded[len(seconds) % len(decoded)])
        seconds.append(time.monotonic() - start)
    return seconds


def load(url: str, photos: list[bytes], num_clients: int, minutes: float) -> tuple[list[float], Counter[str]]:
    """Return the seconds of each prediction, and how often each other outcome came."""
    end = time.monotonic() + 60 * minutes
    seconds: list[float] = []
    failures: Counter[str] = Counter()

    def client(number: int) -> None:
        with httpx.Client(timeout=TIMEOUT_S) as session:
            while time.monotonic() < end:
                number += 1
                start = time.monotonic()
                try:
                    status = session.post(f"{url}/predict", content=photos[number % len(photos)]).status_code
                    outcome = "" if status == 200 else str(status)
                except httpx.HTTPError as error:
                    outcome = type(error).__name__
                if outcome:
                    failures[outcome] += 1
                else:
                    seconds.append(time.monotonic() - start)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, failures


def row(name: str, seconds: list[float], total_s: float) -> str:
    p50, p95 = np.percentile(seconds, [50, 95])
    return f"{name:24} {len(seconds):6} photos  {len(seconds) / total_s:6.2f}/s  p50 {p50:.3f} s  p95 {p95:.3f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path, help="a folder of .jpg files")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5)
    arguments = parser.parse_args()
    photos = [path.read_bytes() for path in sorted(arguments.photos.glob("*.jpg"))[:20]]
    print(row("bare forward pass", bare(arguments.model, photos), BARE_S), flush=True)
    command = [sys.executable, "-m", "pipeline.cli.main", "serve", str(arguments.model), "--port", "0"]
    command += ["--waiting", str(arguments.clients), "--timeout", str(TIMEOUT_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[0]
            start = time.monotonic()
            seconds, failures = load(url, photos, arguments.clients, arguments.minutes)
            print(row(f"{arguments.clients} clients", seconds, time.monotonic() - start))
            print(f"failures: {dict(failures) or 'none'}")
        finally:
            server.kill()
    print(row("bare forward pass, after", bare(arguments.model, photos), BARE_S))


if __name__ == "__main__":
    main()
