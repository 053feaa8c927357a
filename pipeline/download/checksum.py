"""Published checksums, and the record of the first copy that had one."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import DownloadError
from pipeline.files import write_json

PREFIX_DIGITS = 8  # torchvision publishes so many of a weight file's sha256
DIGEST_DIGITS = {"md5": 32, "sha256": 64}
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Checksum:
    """A published checksum.

    algorithm: 'md5' or 'sha256'.
    digits: lowercase hex; of a sha256, the first 8 or more.
    """

    algorithm: str
    digits: str

    def __str__(self) -> str:
        return f"{self.algorithm} {self.digits}"

    @classmethod
    def parse(cls, text: str) -> "Checksum":
        """Parse 'md5:<32 hex>' or 'sha256:<8 to 64 hex>'; raise DownloadError for anything else."""
        algorithm, _, digits = text.lower().partition(":")
        most = DIGEST_DIGITS.get(algorithm, 0)
        least = PREFIX_DIGITS if algorithm == "sha256" else most
        if not most or not least <= len(digits) <= most or not re.fullmatch("[0-9a-f]+", digits):
            forms = f"'md5:' and 32 hex digits, or 'sha256:' and 64 or at least the first {PREFIX_DIGITS}"
            raise DownloadError(f"checksum {text!r} must be {forms}")
        return cls(algorithm, digits)

    def fits(self, file_digests: dict[str, str]) -> bool:
        """Return whether a file with these digests is the published one."""
        return file_digests[self.algorithm].startswith(self.digits)


def digests(path: Path) -> dict[str, str]:
    """Return the md5 and the sha256 of a file as hex digits by name, reading it once."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in DIGEST_DIGITS}
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            for each in hashes.values():
                each.update(chunk)
    return {name: each.hexdigest() for name, each in hashes.items()}


@dataclass(frozen=True)
class Record:
    """Facts about a file from when it was first verified. It lies beside the file; every later copy must agree.

    An md5 can be forged, and torchvision publishes no more than that for VOC and SBD.

    checksum: the published one, as text.
    sha256: 64 hex digits.
    bytes: size of the file.
    source: the URL it came from, without secrets; None if a user placed the file there.
    """

    checksum: str
    sha256: str
    bytes: int
    source: str | None

    @staticmethod
    def path(dest: Path) -> Path:
        """Return where the record of a file lies."""
        return dest.with_name(f"{dest.name}.verified.json")

    @classmethod
    def read(cls, dest: Path, checksum: Checksum) -> "Record | None":
        """Return the record of a file; None if there is none, or if it is of another published checksum."""
        path = cls.path(dest)
        try:
            record = cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise DownloadError(f"{path} is damaged; remove it, and the sha256 is recorded again") from None
        return record if record.checksum == str(checksum) else None

    def write(self, dest: Path) -> None:
        write_json(self.path(dest), asdict(self), is_shared=True)

    def difference(self, file_digests: dict[str, str]) -> str | None:
        """Return how a file that fits the published checksum differs from the first copy; None if it does not."""
        if file_digests["sha256"] == self.sha256:
            return None
        return (
            f"has the published {self.checksum}, but sha256 {file_digests['sha256']}; the first verified copy had "
            f"sha256 {self.sha256}"
        )
