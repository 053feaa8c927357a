"""Locks are tried against a real second process: a process lock does not hold against itself."""

import hashlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import (
    and_more,
    code_digest,
    lock,
    sha256_file,
    whole,
    whole_folder,
    write_json,
)
from tests.lock_holder import HOLD, holder


def test_a_free_lock_is_taken_at_once_and_can_be_taken_again(tmp_path, capsys):
    for _ in range(2):
        with lock(tmp_path / "folder" / "a.lock", "trains") as has_waited:
            assert not has_waited
    assert capsys.readouterr().err == ""


def test_the_second_waits_until_the_first_has_ended_and_says_for_whom(tmp_path, capsys):
    with holder(tmp_path / "a.lock", 1.0) as first, lock(tmp_path / "a.lock", "trains") as has_waited:
        assert has_waited
        assert first.wait(timeout=10) == 0
    assert capsys.readouterr().err.startswith(f"process {first.pid} on ")


def test_a_lock_holds_on_a_full_disk_without_its_holders_name(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # no file can grow
    try:
        with lock(tmp_path / "a.lock", "trains") as has_waited:
            assert not has_waited
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a.lock").read_bytes() == b""


def test_a_killed_holder_leaves_no_lock_behind(tmp_path):
    with holder(tmp_path / "a.lock", 60) as first:
        first.kill()
    with lock(tmp_path / "a.lock", "trains", patience_s=5):
        pass


def test_who_waits_too_long_is_told_whom_to_end(tmp_path):
    with holder(tmp_path / "a.lock", 60) as first:
        start = time.monotonic()
        with (
            pytest.raises(UserError, match=rf"process {first.pid} on .* still trains; end it and run"),
            lock(tmp_path / "a.lock", "trains", patience_s=0.3),
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
    with lock(tmp_path / "a.lock", "trains", patience_s=2):
        pass
    process.stdout.close()


def test_a_whole_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "folder" / "a.json"
    for values in ({"a": 1}, {"a": [2, None]}):
        write_json(path, values)
        assert json.loads(path.read_text("utf-8")) == values
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_file_whose_writer_fails_keeps_its_old_content(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")

    def fail() -> None:
        with whole(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises((UserError, error)):
        fail()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_one_sentence_that_names_the_file():
    with pytest.raises(UserError, match=r"/dev/full/a cannot be written"), whole(Path("/dev/full/a")):
        pass


def test_a_missing_file_that_the_writer_reads_is_not_blamed_on_the_one_it_writes(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), whole(tmp_path / "a") as file:
        file.write((tmp_path / "other").read_bytes())


def test_processes_that_write_one_path_at_once_leave_one_whole_file(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipeline.files import write_text\n"
        "for _ in range(200): write_text(Path(sys.argv[1]), sys.argv[2] * 10000, is_shared=True)"
    )
    path = tmp_path / "a"
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    assert path.read_text() in ("a" * 10000, "b" * 10000)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_folder_appears_with_all_its_files_or_not_at_all(tmp_path):
    dest = tmp_path / "folder"
    with whole_folder(dest) as folder:
        (folder / "a").write_text("1")

    def fail() -> None:
        with whole_folder(dest) as folder:
            (folder / "b").write_text("2")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert [file.name for file in dest.iterdir()] == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_the_digest_of_code_follows_names_and_bytes_of_python_files_alone(tmp_path):
    (tmp_path / "room" / "inner").mkdir(parents=True)
    (tmp_path / "room" / "inner" / "a.py").write_text("1")
    digests = [code_digest(tmp_path, ["room"])]
    (tmp_path / "room" / "notes.md").write_text("no code")
    assert code_digest(tmp_path, ["room"]) == digests[0]
    (tmp_path / "room" / "inner" / "a.py").rename(tmp_path / "room" / "a.py")
    digests.append(code_digest(tmp_path, ["room"]))
    (tmp_path / "room" / "a.py").write_text("2")
    digests.append(code_digest(tmp_path, ["room"]))
    assert len(set(digests)) == 3


def test_a_long_list_is_cut_and_counted():
    assert and_more(list("abc")) == "a, b, c"
    assert and_more(list(range(12)), 2) == "0, 1 and 10 more"


def test_the_sha256_of_a_file_is_hashlibs(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "é" * 125 + ".png", "a" * 246])
@pytest.mark.parametrize("is_shared", [True, False])
def test_a_name_as_long_as_the_disk_allows_is_written(tmp_path, name, is_shared):
    with whole(tmp_path / name, is_shared=is_shared) as file:
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"whole"
