"""The kind of a file that a user gives as weights, by its first bytes.

What is often given instead of weights: a Git LFS pointer, the error page of a server, an archive. The messages of
loaders help against none of them, and torch's advises to run the file's code.
"""

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import CheckpointError

HEAD_BYTES = 1024
MAX_QUOTED = 60  # characters of a text
TORCH, SAFETENSORS, ONNX = "a file of torch.save", "a safetensors file", "an ONNX file"
DOWNLOAD = "download the file itself: open its page in a browser, or copy the address of its download button"
EXPORTED = "give the model that was exported"
UNPACK = "unpack it and give the file with the weights"
OTHER_PROGRAM = "look for the same net's weights for PyTorch, a .pt, .pth or .safetensors file"
WRITE_WEIGHTS = "where the net was made, write its weights alone: torch.save(model.state_dict(), FILE)"


class Kind(NamedTuple):
    """What a file is, and how its user comes to weights."""

    what: str
    remedy: str


# The first bytes of a file, as a pattern
KINDS = (
    (rb"version https://git-lfs", Kind("a Git LFS pointer, not the file itself", "run `git lfs pull` where it lies")),
    (rb".{5}\x00{3}\{", Kind(SAFETENSORS, "its name should end in .safetensors")),
    (rb"\x08[\x03-\x20][\x12\x1a\x22\x2a\x32\x3a]", Kind(ONNX, "its name should end in .onnx")),
    (rb"\x08\x01\x12", Kind("a SavedModel of TensorFlow", OTHER_PROGRAM)),
    (rb".{4}TFL3", Kind("a net of TensorFlow Lite", OTHER_PROGRAM)),
    (rb"\x89HDF\r\n", Kind("an HDF5 file, as Keras writes it", OTHER_PROGRAM)),
    (rb"\x93NUMPY", Kind("an array of numpy", OTHER_PROGRAM)),
    (rb"\xff\xd8\xff|\x89PNG", Kind("a photo", "give the model first, then the photos")),
    (rb"\x80[\x03-\x05]", Kind("a pickle of Python objects, not weights", WRITE_WEIGHTS)),
    (rb"\x1f\x8b", Kind("a gzip archive", UNPACK)),
    (rb"BZh[1-9]", Kind("a bzip2 archive", UNPACK)),
    (rb"\xfd7zXZ\x00", Kind("an xz archive", UNPACK)),
    (rb"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", UNPACK)),
    (rb"Rar!", Kind("a RAR archive", UNPACK)),
    (rb".{257}ustar", Kind("a tar archive", UNPACK)),
)  # fmt: skip
MEMBERS = (  # of a zip archive
    (r"(.*/)?constants\.pkl", Kind("a TorchScript program, not weights", WRITE_WEIGHTS)),
    (r"(.*/)?archive_format", Kind("a program of torch.export, not weights", EXPORTED)),
    (r"(.*/)?data\.pkl", Kind(TORCH, "its name should end in .pt")),
    (r"model\.weights\.h5", Kind("a net of Keras", OTHER_PROGRAM)),
    (r".*\.npy", Kind("a .npz archive of numpy", OTHER_PROGRAM)),
)  # fmt: skip


def require_kind(path: Path, *allowed: str, expected: str) -> str:
    """Return the file's kind, "" if it is not known; refuse the known ones that are not allowed.

    allowed: kinds.
    expected: what the file should be, for the message.

    Raises CheckpointError if the file cannot be read, or is of another kind.
    """
    kind = kind_of(path)
    if kind and kind.what not in allowed and kind.remedy.endswith(f" {path.suffix}"):
        kind = kind._replace(remedy=EXPORTED)
    if kind and kind.what not in allowed:
        raise CheckpointError(f"{path} is {kind.what}; expected {expected}; {kind.remedy}")
    return kind.what if kind else ""


def kind_of(path: Path) -> Kind | None:
    """Return the kind of a file, None if its first bytes are not known."""
    if path.is_dir():
        return Kind("a folder", "give the file in it")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        return Kind("an empty file", "its download or copy was cut off; fetch it again")
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    for pattern, kind in KINDS:
        if re.match(pattern, head, re.DOTALL):
            return kind
    return _kind_of_text(head)


def _kind_of_zip(path: Path) -> Kind | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged in any way: the loader's message holds
        return None
    for pattern, kind in MEMBERS:
        if any(re.fullmatch(pattern, name) for name in names):
            return kind
    return Kind("a zip archive", UNPACK)


def _kind_of_text(head: bytes) -> Kind | None:
    """Return the kind of a file without control characters, with the words that show where it comes from."""
    if re.search(rb"[\x00-\x08\x0e-\x1f]", head):
        return None
    text = head.decode("utf-8", "replace").lstrip("\ufeff \r\n\t")
    page = re.match(r"<!doctype html|<html", text, re.IGNORECASE)
    # The title of a page, or the error's name in the XML and JSON of storage services
    title = re.search(
        r'<title>\s*(.+?)\s*</title>|<Code>(.+?)</Code>|"(?:error|message)":\s*"(.+?)"', text, re.DOTALL
    )
    quoted = " ".join((next(filter(None, title.groups())) if title else text.partition("\n")[0]).split())[
        :MAX_QUOTED
    ]
    what = "an HTML page" if page else "an XML page" if text.startswith("<") else "a text"
    remedy = DOWNLOAD if text.startswith("<") else f"give another; if it was downloaded, {DOWNLOAD}"
    return Kind(f'{what} ("{quoted}"), not the file itself', remedy)
