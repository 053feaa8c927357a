"""An S3-compatible server on loopback, and the environment that points to it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyarrow import fs

from pipeline import storage

BUCKET = "shelf"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server with an empty BUCKET and give its s3:// URL. Objects live in its memory."""
    port = free_port()
    moto = str(Path(sys.executable).with_name("moto_server"))
    process = subprocess.Popen(
        [moto, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with pytest.MonkeyPatch.context() as patch:
        point_to(f"http://127.0.0.1:{port}", patch)
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.1)
            system = fs.S3FileSystem(
                endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True
            )
            system.create_dir(BUCKET)
            yield f"s3://{BUCKET}"
        finally:
            process.terminate()
            process.wait()
            forget()


def point_to(endpoint: str, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_REGION", "us-east-1")
    forget()


def forget() -> None:
    """Drop the connections to an earlier server."""
    storage.system.cache_clear()
    storage._open_cached.cache_clear()


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
