"""Error messages for params.yaml and profiles: the key, the values it may have, and the value it has."""

import re
from pathlib import Path
from typing import Any, get_args

TYPES = {
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
}


def yaml_message(error: Exception) -> str:
    """Return the problem and its line, without the parser's drawing of it."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else " ".join(str(error).split())


def value_message(section: type[Any], path: Path, detail: Any) -> str:
    """Return one of pydantic's errors as a sentence.

    section: the section that the file should hold.
    path: the file.
    detail: the error, an item of ValidationError.errors().
    """
    key = ".".join(str(part) for part in detail["loc"]) or "the file"
    value, reason = detail["input"], detail["msg"]
    match detail["type"]:
        case "extra_forbidden" | "invalid_key":
            known = ", ".join(_keys_beside(section, detail["loc"]))
            return f"{path}: unknown key {key}; known there: {known}"
        case "missing":
            return f"{path}: {key} is missing; add it"
        case "value_error":
            return f"{path}: {key}: {reason.removeprefix('Value error, ')}"
        case "string_pattern_mismatch":
            return f"{path}: {key} must match {detail['ctx']['pattern']}, got {value!r}"
        case "too_short" | "too_long":
            reason = re.sub(r".*should have (.*) after validation.*", r"\1", reason)
            return f"{path}: {key} must have {reason}, got {value!r}"
    expected = TYPES.get(detail["type"]) or reason.removeprefix("Input should be ")
    got = "a URL" if isinstance(value, str) and "://" in value else repr(value)  # which may hold a password
    return f"{path}: {key} must be {expected}, got {got}"


def _keys_beside(section: type[Any], where: tuple[str | int, ...]) -> list[str]:
    """Return the keys of the section that the last part of `where` is in."""
    for part in where[:-1]:
        field = section.model_fields.get(str(part))  # None: the name of an archive, which is free
        annotation = field.annotation if field else None
        for kind in (annotation, *get_args(annotation)):
            if isinstance(kind, type) and hasattr(kind, "model_fields"):
                section = kind
    return list(section.model_fields)
