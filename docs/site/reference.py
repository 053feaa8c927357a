"""The reference of profile keys, from their schema and docstrings, and of the command line, from its help."""

import argparse
import inspect
import os
from collections.abc import Iterator
from typing import Any

from docstrings import entries, escaped
from pydantic import TypeAdapter

PIPE = "\\|"  # in a table
LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "pattern": "like `{}`",
}
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "array": "list",
    "object": "keys and values",
    "null": "null",
}


def profile_page() -> str:
    from fcn.backbones.vgg import VGG16
    from fcn.model import FCN
    from pipeline.config import Profile
    from pipeline.config.model import Model

    # The section `model` is the arguments of FCN and its trunk, which describe them
    arguments = dict(entries(inspect.getdoc(VGG16) or "")) | dict(entries(inspect.getdoc(FCN) or ""))
    text = [
        "# Profile keys",
        "",
        "A profile is `profiles/<name>.yaml`; `params.yaml` names it. Its sections are below, each key with its type, "
        "limits and its default. A key without a default must be given. This page is written from `pipeline/config/`.",
    ]
    for path, section in sections(Profile, ""):
        if path:
            summary, *_ = (inspect.getdoc(section) or "").split("\n\n")
            level = 2 + path.replace(".<name>", "").count(".")
            text += ["", f"{'#' * level} `{path}`", "", escaped(summary.replace("\n", " ")), ""]
            text += table(section, arguments if section is Model else {})
    return "\n".join(text) + "\n"


def sections(section: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, class) of a section and of those in it, depth first."""
    yield path, section
    for name, field in section.model_fields.items():
        if inner := inner_section(field.annotation):
            key = f"{path}.{name}".lstrip(".")
            yield from sections(inner, f"{key}.<name>" if "dict[" in str(field.annotation) else key)


def inner_section(annotation: Any) -> Any:
    """Return the section in an annotation such as Drawing | None; None if there is none."""
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and hasattr(kind, "model_fields"):
            return kind
    return None


def table(section: Any, meanings: dict[str, str]) -> list[str]:
    meanings = meanings | dict(entries(inspect.getdoc(section) or ""))
    schema = section.model_json_schema()
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in section.model_fields.items():
        kind = in_words(schema["properties"][name]) or in_words(TypeAdapter(field.annotation).json_schema())
        default = "must be given" if field.is_required() else shown(field.get_default())
        rows.append(f"| `{name}` | {kind.replace('|', PIPE)} | {default} | {escaped(meanings[name])} |")
    return rows


def in_words(schema: dict[str, Any]) -> str:
    """Return the type and the limits of a JSON schema; empty where it states none."""
    if "anyOf" in schema:
        return " or ".join(filter(None, map(in_words, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{as_yaml(value)}`" for value in schema.get("enum") or [schema["const"]])
    if "$ref" in schema:
        return "section"
    kind = TYPES.get(schema.get("type", ""), "")
    if "prefixItems" in schema:
        kind = f"pair: {in_words(schema['prefixItems'][0])}"
    elif schema.get("items"):
        kind = f"list of {in_words(schema['items'])}"
    limits = [words.format(power(schema[key])) for key, words in LIMITS.items() if key in schema]
    return ", ".join(filter(None, [kind, *limits]))


def power(limit: Any) -> Any:
    return f"2\\*\\*{limit.bit_length() - 1}" if isinstance(limit, int) and limit >= 2**32 else limit


def shown(default: Any) -> str:
    return "as below" if hasattr(type(default), "model_fields") else f"`{as_yaml(default)}`"


def as_yaml(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def cli_page() -> str:
    from pipeline.cli.main import parser

    os.environ["COLUMNS"] = "100"  # argparse wraps at the terminal's width
    text = [
        "# Command line",
        "",
        "`fcn --help` and the help of each command, as this version prints them. A user's mistake ends with one "
        "message and exit code 2; exit code 1 is a check that failed.",
    ]
    for command in commands(parser()):
        level = max(2, 1 + command.prog.count(" "))
        text += ["", f"{'#' * level} `{command.prog}`", "", "```text", command.format_help().rstrip(), "```"]
    return "\n".join(text) + "\n"


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from commands(inner)
