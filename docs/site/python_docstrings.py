"""Have mkdocstrings show the project's docstrings as Markdown."""

import sys
from pathlib import Path

import griffe

sys.path.append(str(Path(__file__).parent))  # mkdocstrings loads this file by its path
from docstrings import as_markdown


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
