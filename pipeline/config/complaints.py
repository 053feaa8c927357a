"""What a user reads of a mistake in params.yaml or a profile: the key, what it must be, and what it is."""

import re
from pathlib import Path
from typing import Any, get_args


def complaint(error: Exception) -> str:
    """What is wrong and in which line, without the parser's drawing of the place."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else " ".join(str(error).split())


def sentence(section: type[Any], path: Path, detail: Any) -> str:
    """One of pydantic's errors about a file that should hold `section`."""
    where = ".".join(str(part) for part in detail["loc"]) or "the file"
    given, reason = detail["input"], detail["msg"]
    match detail["type"]:
        case "extra_forbidden" | "invalid_key":
            known = ", ".join(_keys_beside(section, detail["loc"]))
            return f"{path}: unknown key {where}; known there: {known}"
        case "missing":
            return f"{path}: {where} is missing; add it"
        case "value_error":
            return f"{path}: {where}: {reason.removeprefix('Value error, ')}"
        case "string_pattern_mismatch":
            return f"{path}: {where} must match {detail['ctx']['pattern']}, got {given!r}"
        case "too_short" | "too_long":
            reason = re.sub(r".*should have (.*) after validation.*", r"\1", reason)
            return f"{path}: {where} must have {reason}, got {given!r}"
    kind = _KINDS.get(detail["type"]) or reason.removeprefix("Input should be ")
    return f"{path}: {where} must be {kind}, got {given!r}"


def _keys_beside(section: type[Any], where: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand in the section which the last part of `where` is in."""
    for part in where[:-1]:
        field = section.model_fields.get(str(part))  # None: the name of an archive, not a key of ours
        annotation = field.annotation if field else None
        for kind in (annotation, *get_args(annotation)):
            if isinstance(kind, type) and hasattr(kind, "model_fields"):
                section = kind
    return list(section.model_fields)


_KINDS = {
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
}
