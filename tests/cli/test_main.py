"""The `fcn` command as a user runs it."""

import subprocess
import sys

import pytest

from fcn import ledger
from tests.drawn_shards import shards_of


def fcn(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["verify"],
        ["inspect"],
        ["export"],
        ["caffe"],
        ["caffe", "import"],
        ["heatmap"],
        ["predict"],
        ["serve"],
        ["submit"],
        ["tracking"],
        ["tracking", "replay"],
        ["register"],
    ],
)
def test_every_command_explains_itself(command):
    done = fcn(*command, "--help")
    assert done.returncode == 0
    assert "usage: fcn" in done.stdout


@pytest.mark.parametrize(
    "command", [["vrify"], ["caffe", "eksport"], ["export", "m.pt", "m.onnx", "--format", "gif"]]
)
def test_a_command_that_is_unknown_exits_with_2(command):
    done = fcn(*command)
    assert done.returncode == 2
    assert "invalid choice" in done.stderr


def test_a_missing_model_is_a_message_and_exit_code_2(tmp_path):
    done = fcn("export", str(tmp_path / "none.pt"), str(tmp_path / "none.onnx"), "--format", "onnx")
    assert done.returncode == 2
    assert "none.pt is missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_holds_every_fact_and_names_its_source():
    done = fcn("verify")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) >= 30
    assert all(line.startswith("ok ") and line.endswith("]") for line in lines)


def test_verify_exits_with_1_if_a_fact_does_not_hold(monkeypatch, capsys):
    from pipeline.cli.main import parser

    wrong = ledger.Fact("crop of score", 19, 18, "net.py")
    monkeypatch.setattr(ledger, "facts", lambda: iter([wrong]))
    arguments = parser().parse_args(["verify"])
    with pytest.raises(SystemExit) as exit_:
        arguments.run(arguments)
    assert exit_.value.code == 1
    assert "FAIL crop of score" in capsys.readouterr().out


def test_inspect_says_what_folders_of_shards_hold_and_share(tmp_path):
    for name, contents in {"train": {"a": 1, "b": 2}, "val": {"c": 2, "d": 4}}.items():
        shards_of(tmp_path / name, contents, name)
    done = fcn("inspect", str(tmp_path / "val"), str(tmp_path / "train"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("| images | 2 |") == 2
    train, val = tmp_path / "train", tmp_path / "val"
    assert lines[-1] == f"{val} shares 1 images with {train}, by id or pixels: c (b in {train})"


def test_output_that_nobody_reads_to_the_end_is_no_error():
    """As with `fcn verify | head -1`."""
    command = [
        sys.executable,
        "-c",
        "from pipeline.errors import exit_cleanly; exit_cleanly(lambda: print('x' * 10**6))",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
