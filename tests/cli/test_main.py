"""The `fcn` command as a user runs it."""

import subprocess
import sys

import pytest

from fcn import ledger
from pipeline.cli.main import parser
from tests.conftest import ROOT, run_fcn


def fcn(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        *(
            "",
            "init",
            "verify",
            "inspect",
            "export",
            "caffe",
            "caffe import",
            "caffe export",
            "heatmap",
            "shards fetch",
            "shards index",
            "shards verify",
        ),
        *("predict", "serve", "submit", "compare", "explain", "tracking", "tracking replay", "register"),
        *("cluster", "cluster submit", "cluster follow", "cluster stop", "cluster head", "cluster join"),
        "cluster token",
    ],
)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser().parse_args([*command.split(), "--help"])
    assert exit_.value.code == 0
    assert f"usage: fcn {command}".strip() in capsys.readouterr().out


def test_help_is_fast_because_it_imports_no_framework():
    heavy = {"torch", "ray", "mlflow", "numpy", "pydantic", "pyarrow", "fastapi", "httpx", "PIL"}
    program = f"import sys; from pipeline.cli.main import parser; parser(); print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("command", ["vrify", "caffe eksport"])
def test_a_command_that_is_unknown_exits_with_2(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser().parse_args(command.split())
    assert exit_.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize("size", [("-5", "0"), ("0", "500")])
def test_an_input_of_no_pixels_is_refused(size, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser().parse_args(["caffe", "export", "net.pt", "net", "--size", *size])
    assert exit_.value.code == 2
    assert "--size" in capsys.readouterr().err


def test_a_missing_model_is_a_message_and_exit_code_2(tmp_path):
    done = fcn("export", str(tmp_path / "none.pt"), str(tmp_path / "none.onnx"))
    assert done.returncode == 2
    assert "none.pt" in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_holds_every_fact_and_names_its_source():
    done = fcn("verify")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) >= 30
    assert all(line.startswith("ok ") and line.endswith("]") for line in lines)


def test_verify_exits_with_1_if_a_fact_does_not_hold(monkeypatch, capsys):
    wrong = ledger.Fact("crop of score", 19, 18, "net.py")
    monkeypatch.setattr(ledger, "facts", lambda: iter([wrong]))
    arguments = parser().parse_args(["verify"])
    with pytest.raises(SystemExit) as exit_:
        arguments.run(arguments)
    assert exit_.value.code == 1
    assert "FAIL crop of score" in capsys.readouterr().out


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


@pytest.mark.parametrize("command", ["compare", "explain", "seeds", "sweep", "inspect"])
def test_a_name_that_is_too_long_for_a_file_is_one_message(command, monkeypatch, capsys):
    code, _, err = run_fcn(monkeypatch, capsys, command, "n" * 300)
    assert (code, err.count("\n")) == (2, 1)
    assert "n" * 300 in err
