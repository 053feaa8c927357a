"""Every command that the documentation shows is one that exists, with options that it takes."""

import argparse
import ast
import itertools
import re
import subprocess

import pytest
from dvc.cli.parser import get_main_parser

from pipeline.cli.main import parser as fcn_parser
from tests.conftest import ROOT
from tests.documented_commands import Command, all_commands
from tests.project_copy import yaml

COMMANDS = list(all_commands())
# Programs of others, which a reader has or a page names as needed
OTHERS = {
    *("bash", "cat", "cd", "curl", "export", "file", "find", "mkdir", "ssh", ".", "$EDITOR"),
    *("git", "kubectl", "mlflow", "pip", "python3", "ray", "pre-commit", "docker", "nginx", "caddy", "uv"),
}


def test_the_pages_show_commands():
    assert len({words[:2] for _, words, _ in COMMANDS if words[0] == "fcn"}) > 15
    assert sum(command.whole for command in COMMANDS) > 50


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS), ids=str)
def test_a_command_of_the_documentation_is_understood(command: Command):
    program, *arguments = command.words
    match program:
        case "fcn":
            check(fcn_parser(), arguments, command.whole)
        case "dvc":
            check_dvc(arguments, command.whole)
        case "make":
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        case "python":
            check_module(arguments)
        case _:
            assert program in OTHERS, f"{program} is unknown: mistyped, or add it to OTHERS"
    for path in command.words:
        if re.match(r"(deploy|profiles|sweeps|stages)/[\w.-]+$", path):
            assert (ROOT / path).exists()


def check(parser: argparse.ArgumentParser, arguments: list[str], whole: bool) -> argparse.Namespace | None:
    """A whole command is parsed; of one within a sentence the subcommands and options are looked up."""
    if whole:
        try:
            return parser.parse_args([argument for argument in arguments if argument != "..."])
        except SystemExit:
            pytest.fail("its arguments are refused")
    for argument in itertools.takewhile(
        lambda each: each != "--", arguments
    ):  # what follows is for another program
        inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if argument.startswith("--"):
            assert argument.partition("=")[0] in parser._option_string_actions, argument
        elif inner and not argument.startswith("-"):
            assert argument in inner[0].choices, argument
            parser = inner[0].choices[argument]
    return None


def check_dvc(arguments: list[str], whole: bool) -> None:
    check(get_main_parser(), arguments, whole)
    stages = yaml.load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    names = {
        *stages,
        *(f"{name}@{key}" for name, stage in stages.items() for key in stage.get("foreach", ())),
    }
    words = iter(arguments)
    for word in words:
        if word in ("-S", "--set-param"):
            file, _, assigned = next(words).rpartition(":")
            values = yaml.load((ROOT / (file or "params.yaml")).read_text("utf-8"))
            for key in assigned.partition("=")[0].split("."):
                values = values[key]
        elif arguments[0] == "repro" and not word.startswith("-") and word != "repro":
            assert word in names, word


def check_module(arguments: list[str]) -> None:
    """`python -m MODULE`: the file is there, and its options are among those it adds."""
    assert arguments[0] == "-m", arguments
    if arguments[1] == "pip":
        return
    source = ROOT.joinpath(*arguments[1].split(".")).with_suffix(".py")
    added = {
        node.args[0].value
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "add_argument"
        and isinstance(node.args[0], ast.Constant)
    }
    assert {argument for argument in arguments if argument.startswith("--")} <= added | {"--help"}
