"""The commands that README, CONTRIBUTING and docs/ show: in blocks of ```console, and in `code` within a sentence."""

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
ANY_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
OURS = ("fcn", "make", "dvc", "python")
OPERATORS = {"&&", "||", "|", "&", ";"}


class Command(NamedTuple):
    """words: the program, without the folder it lies in, and its arguments; whole: whether a reader could run it."""

    page: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def lines(page: str) -> list[str]:
    """The shell's lines in a page's blocks, in order, without the prompt."""
    text = "".join(BLOCK.findall((ROOT / page).read_text("utf-8"))).replace("\\\n", "")
    return re.findall(r"^\d?\$ (.*)$", text, re.MULTILINE)


def all_commands() -> Iterator[Command]:
    for path in PAGES:
        page = path.relative_to(ROOT).as_posix()
        for line in lines(page):
            yield from (Command(page, words, whole=True) for words in simple_commands(line))
        for code in CODE.findall(ANY_BLOCK.sub("", path.read_text("utf-8"))):
            if re.match(r"([A-Z_]+=\S+ )*(" + "|".join(OURS) + r") [a-z-]", code):
                yield from (Command(page, words, whole=False) for words in simple_commands(code))


def simple_commands(line: str) -> Iterator[tuple[str, ...]]:
    """Split a line of a shell at its operators; leave out comments, redirections and variables set before a program."""
    lexer = shlex.shlex(re.sub(r"\$\([^()]*\)", "VALUE", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = [*lexer, "&&"]
    for before, token in zip(["", *tokens], tokens, strict=False):
        if token in OPERATORS:
            if words:
                yield (words[0].rpartition("/")[2], *words[1:])
            words = []
        elif set(token) <= set("<>") or set(before or "-") <= set("<>"):
            continue
        elif words or not re.match(r"[A-Z_]+=", token):
            words.append(token)
