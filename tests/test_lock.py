"""The other process is a real one: a lock of the process does not hold against itself."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.lock import only_one

HOLD = """
import sys, time
from pathlib import Path
from pipeline.lock import only_one
with only_one(Path(sys.argv[1]), "trains"):
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


def test_a_free_lock_is_taken_at_once_and_can_be_taken_again(tmp_path, capsys):
    for _ in range(2):
        with only_one(tmp_path / "folder" / "a.lock", "trains") as has_waited:
            assert not has_waited
    assert capsys.readouterr().err == ""


def test_the_second_waits_until_the_first_has_ended_and_says_for_whom(tmp_path, capsys):
    with holder(tmp_path / "a.lock", 1.0) as first, only_one(tmp_path / "a.lock", "trains") as has_waited:
        assert has_waited
        assert first.wait(timeout=10) == 0
    assert capsys.readouterr().err.startswith(f"process {first.pid} on ")


def test_a_killed_holder_leaves_no_lock_behind(tmp_path):
    with holder(tmp_path / "a.lock", 60) as first:
        first.kill()
    with only_one(tmp_path / "a.lock", "trains", patience_s=5):
        pass


def test_who_waits_too_long_is_told_whom_to_end(tmp_path):
    with holder(tmp_path / "a.lock", 60) as first:
        start = time.monotonic()
        with (
            pytest.raises(UserError, match=rf"process {first.pid} on .* still trains; end it and run"),
            only_one(tmp_path / "a.lock", "trains", patience_s=0.3),
        ):
            pass
        assert time.monotonic() - start < 5
        first.kill()


def test_processes_forked_by_a_holder_that_was_killed_do_not_hold_on(tmp_path):
    """As those that read data ahead for a worker, which outlive it for seconds."""
    program = HOLD.replace(
        'print("held", flush=True)',
        'import os\n    if os.fork() == 0: time.sleep(20); os._exit(0)\n    print("held", flush=True)',
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "a.lock"), "60"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    with only_one(tmp_path / "a.lock", "trains", patience_s=2):
        pass
    process.stdout.close()
