"""Names of a user's files: the keys that they become, and the files that systems and tools leave in folders."""

import hashlib
import re
import unicodedata
from pathlib import PurePath

_KEY = re.compile(r"[A-Za-z0-9_-]+")  # a key names files and tar members: no '.', no '/', nothing to escape
_LEFT_BEHIND = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"),
    "system volume information",
}


def is_key(name: str) -> bool:
    return bool(_KEY.fullmatch(name))


def key_of(name: str) -> str:
    """Return the key of a photo's name: a valid key stays as it is, any other becomes its valid part and a digest.

    The same name gives the same key on every machine: "cam 2/0001.rf" -> "cam_2_0001_rf-" and 8 digits.

    name: the path below the folder of photos, with '/', without ending.
    """
    name = unicodedata.normalize("NFC", name)  # macOS writes letters with marks as two characters
    if is_key(name):
        return name
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-")[:60]
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{readable}-{digest}" if readable else digest


def is_left_behind(path: PurePath) -> bool:
    """Return whether a path is what an operating system or a tool leaves: .DS_Store, Thumbs.db, a hidden folder ...

    path: relative to the user's folder.
    """
    return any(part.startswith(".") or part.lower() in _LEFT_BEHIND for part in path.parts)
