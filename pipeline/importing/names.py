"""Keys for photos: names of any alphabet, with spaces, dots and folders, become letters, digits, '_' and '-'."""

import hashlib
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from pipeline.importing.source import nfc

MAX_SLUG = 80
HASH_DIGITS = 8


def keys(photos: Iterable[str]) -> dict[str, str]:
    """Return a key for each photo's path, unique also where upper and lower case are one.

    A key is the file's name without ending, other characters replaced by '_'. Where two photos would share a key, each
    gets the start of the sha256 of its path, in the Unicode form of most systems. So a key changes only if a photo of
    the same name joins or leaves.
    """
    slugs = {photo: _slug(photo) for photo in photos}
    num = Counter(slug.casefold() for slug in slugs.values())
    result: dict[str, str] = {}
    taken: set[str] = {slug.casefold() for slug in slugs.values() if num[slug.casefold()] == 1}
    for photo, slug in sorted(slugs.items(), key=lambda item: (nfc(item[0]), item[0])):
        key, digits = slug, HASH_DIGITS
        if num[slug.casefold()] > 1:
            # The second: of two spellings that are one file on macOS
            digest = "".join(hashlib.sha256(text.encode()).hexdigest() for text in (nfc(photo), photo))
            while (key := f"{slug}-{digest[:digits]}").casefold() in taken:
                digits += 1
            taken.add(key.casefold())
        result[photo] = key
    return result


def _slug(photo: str) -> str:
    name = posixpath.splitext(posixpath.basename(photo))[0]
    latin = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", latin)[:MAX_SLUG]
    return slug if re.search(r"[A-Za-z0-9]", slug) else "photo"
