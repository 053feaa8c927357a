"""The profile's file: a plan as YAML with the reasons as comments, and the line of params.yaml that names it."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import PARAMS, PROFILES
from pipeline.errors import ConfigError
from pipeline.files import counted, write_text
from pipeline.planning.fingerprint import Fingerprint
from pipeline.planning.plan import Choice, Plan

WIDTH = 110  # of a line of the profile
NO_TEXT = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}  # in YAML 1.1


def check_name(name: str, root: Path, *, force: bool) -> None:
    """Raise ConfigError if the profile cannot be written under this name.

    force: replace a profile that is there.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"profile name {name!r}: expected letters, digits, '_' and '-' only")
    path = PROFILES / f"{name}.yaml"
    if (root / path).exists() and not force:
        raise ConfigError(f"{path} exists; choose another name, or replace it with --force")
    _params_naming(name, root)


def write(name: str, text: str, root: Path) -> None:
    """Write profiles/<name>.yaml, and then the line of params.yaml that names it."""
    params = _params_naming(name, root)
    write_text(root / PROFILES / f"{name}.yaml", text)
    write_text(root / PARAMS, params)


def _params_naming(name: str, root: Path) -> str:
    """Return the text of params.yaml with another profile's name; every other line stays."""
    try:
        text = (root / PARAMS).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{PARAMS} cannot be read ({error.strerror}); run from the project's root, the checkout that holds it"
        ) from error
    changed, count = re.subn(r"(?m)^profile:[ \t]*[^\s#]+", f"profile: {as_yaml(name)}", text)
    if count != 1:
        raise ConfigError(f"{PARAMS} has {count} lines that begin with 'profile:', expected one")
    return changed


def profile_text(plan: Plan, header: Mapping[str, str], data: Fingerprint) -> str:
    """Return the profile's file: the header's lines, then each value below its reason.

    header: by name, "command" and so on; "" for the lines before.
    """
    lines = textwrap.wrap(header[""], WIDTH, initial_indent="# ", subsequent_indent="# ")
    for name, text in header.items():
        if name:
            label = f"# {name + ':':9} "
            lines += textwrap.wrap(text, WIDTH, initial_indent=label, subsequent_indent="#" + " " * 11)
    return "\n".join([*lines, *_lines(plan, "", data)]) + "\n"


def _lines(plan: Plan, indent: str, data: Fingerprint) -> Iterator[str]:
    for key, part in plan.items():
        if not isinstance(part, Choice):
            yield f"{indent}{as_yaml(key)}:"
            yield from _lines(part, f"{indent}  ", data)
            continue
        comment = f"{indent}# "
        yield from textwrap.wrap(part.reason, WIDTH, initial_indent=comment, subsequent_indent=comment)
        if part.value is not data.classes:
            yield f"{indent}{as_yaml(key)}: {as_yaml(part.value)}"
            continue
        yield f"{indent}{key}:"
        for name, share, number in zip(data.classes, data.shares, data.num_showing, strict=True):
            yield f"{indent}  - {as_yaml(name)} # {share:.2%} of the pixels, in {counted(number, 'photo')}"


def as_yaml(value: Any) -> str:
    """Return a value on one line of YAML 1.1 and 1.2."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_yaml(key)}: {as_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if isinstance(value, str):
        is_plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_/-]*", value) and value.lower() not in NO_TEXT
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa)}e{exponent}"  # YAML 1.1 reads 1e-05, without a point, as text
    return json.dumps(value)
