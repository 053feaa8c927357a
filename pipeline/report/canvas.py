"""What all figures share: `canvas` begins one, `save` writes it as a PNG file, `as_svg` returns it for a page."""

import io
import re
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from pipeline import files

DPI = 110
FONTS = (  # in which a letter is looked for, in order; the first has Latin, Greek, Cyrillic, Arabic ... letters
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)
_MISSING_LETTER = re.compile(r"Glyph (\d+) .*missing from")  # a warning of matplotlib


def families(installed: Collection[str]) -> list[str]:
    """Return those of FONTS that are installed; matplotlib warns of each other one."""
    return [name for name in FONTS if name in installed] or [FONTS[0]]


matplotlib.rcParams["font.family"] = families({font.name for font in font_manager.fontManager.ttflist})
_told: set[str] = set()  # letters of which a sentence was printed


def missing_letters(text: str) -> set[str]:
    """Return the letters of a text that no font in use has."""
    fonts = [
        font_manager.get_font(font_manager.findfont(name)) for name in matplotlib.rcParams["font.family"]
    ]
    return {letter for letter in text if not any(font.get_char_index(ord(letter)) for font in fonts)}


def font_advice(letters: Collection[str]) -> str:
    return (
        f"no installed font has the letters {''.join(sorted(letters))}, so figures show boxes for them; install "
        "a font of that script, such as Noto Sans CJK (Debian: fonts-noto-cjk)"
    )


@contextmanager
def _missing_letters_in_one_sentence() -> Iterator[None]:
    """Print one sentence for all letters that no font has, in place of a warning for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    letters = set()
    for warning in caught:
        if match := _MISSING_LETTER.match(str(warning.message)):
            letters.add(chr(int(match[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if letters - _told:
        print(font_advice(letters), file=sys.stderr, flush=True)
        _told.update(letters)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    with files.whole(path) as file, _missing_letters_in_one_sentence():
        figure.savefig(file, dpi=DPI, format="png")


def as_svg(figure: Figure) -> str:
    """Return a newly drawn figure as an <svg> element: the same for the same data, without scripts and outer files."""
    text = io.StringIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "fcn"}),
        _missing_letters_in_one_sentence(),
    ):  # else ids are random
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    return svg[svg.index("<svg") :]  # the prolog names a DTD at w3.org


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches; it belongs to no window, so it needs no screen and no closing."""
    return Figure(figsize=(width, height), layout="constrained")


def plain(text: str) -> str:
    """Escape the dollar, with which matplotlib begins a formula."""
    return text.replace("$", r"\$")
