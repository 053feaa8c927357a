"""Run checks and collect what they find."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.config import Profile
from pipeline.errors import UserError


class Setting(NamedTuple):
    """What is checked: a profile in a project.

    root: the project's folder, absolute.
    """

    root: Path
    name: str
    profile: Profile


class Finding(NamedTuple):
    """The outcome of a check.

    state: "fail" if a run would fail; "warn" if it would go on, but worse.
    text: what was found, or what to do.
    """

    check: str
    state: Literal["ok", "warn", "fail"]
    text: str


class AdviceError(UserError):
    """Raised by a check for something that a run can do without."""


Checks = Mapping[str, Callable[[Setting], str]]  # each returns what it found, or raises UserError


def find(checks: Checks, setting: Setting) -> Iterator[Finding]:
    """Yield the finding of each check when it is done."""
    for name, check in checks.items():
        try:
            yield Finding(name, "ok", check(setting))
        except AdviceError as error:
            yield Finding(name, "warn", str(error))
        except UserError as error:
            yield Finding(name, "fail", str(error))


def refuse(checks: Checks, setting: Setting) -> None:
    """Raise UserError with the reasons for which a run would fail, if any."""
    reasons = [finding.text for finding in find(checks, setting) if finding.state == "fail"]
    if reasons:
        raise UserError("\n".join(reasons))
