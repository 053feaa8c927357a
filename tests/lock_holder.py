"""A second process that holds a lock: a process lock does not hold against itself."""

import subprocess
import sys
from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from pipeline.files import lock
with lock(Path(sys.argv[1]), "trains"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(path: Path, seconds: float) -> subprocess.Popen:
    """A process that has the lock for so long."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process
