"""What a file must hash to: the checksum its publisher gives, and the sha256 of the first copy that fitted it."""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import DownloadError

PREFIX_DIGITS = 8  # what torchvision's weights publish of their sha256
DIGEST_DIGITS = {"md5": 32, "sha256": 64}
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Checksum:
    """As published: md5, or the first digits of a sha256, or all of them."""

    algorithm: str
    digits: str

    def __str__(self) -> str:
        return f"{self.algorithm} {self.digits}"

    @classmethod
    def parse(cls, text: str) -> "Checksum":
        """From 'md5:<32 hex>' or 'sha256:<8 to 64 hex>'; DownloadError for anything else."""
        algorithm, _, digits = text.lower().partition(":")
        full = DIGEST_DIGITS.get(algorithm, 0)
        least = PREFIX_DIGITS if algorithm == "sha256" else full
        if not full or not least <= len(digits) <= full or not re.fullmatch("[0-9a-f]+", digits):
            forms = f"'md5:' and 32 hex digits, or 'sha256:' and 64 or at least the first {PREFIX_DIGITS}"
            raise DownloadError(f"checksum {text!r} must be {forms}")
        return cls(algorithm, digits)

    def fits(self, found: dict[str, str]) -> bool:
        """Whether a file with these digests is the published one."""
        return found[self.algorithm].startswith(self.digits)


def digests(path: Path) -> dict[str, str]:
    """The hex digests of a file under each algorithm of DIGEST_DIGITS, read once."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in DIGEST_DIGITS}
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            for one in hashes.values():
                one.update(chunk)
    return {name: one.hexdigest() for name, one in hashes.items()}


@dataclass(frozen=True)
class Record:
    """What was found when a file was verified for the first time; lies beside it, and every later copy must agree.

    An md5 can be forged, and torchvision publishes no more than that for VOC and SBD.
    source: the URL it came from, without secrets; None if somebody placed the file there.
    """

    checksum: str
    sha256: str
    bytes: int
    source: str | None

    @staticmethod
    def path(dest: Path) -> Path:
        """Where the record of a file lies."""
        return dest.with_name(f"{dest.name}.verified.json")

    @classmethod
    def read(cls, dest: Path, checksum: Checksum) -> "Record | None":
        """The record of a file that had this checksum; None if there is none, or it is of another file."""
        path = cls.path(dest)
        try:
            record = cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise DownloadError(f"{path} is damaged; remove it, and the sha256 is recorded anew") from None
        return record if record.checksum == str(checksum) else None

    def write(self, dest: Path) -> None:
        """Puts the record beside the file, whole or not at all."""
        path = self.path(dest)
        arriving = path.with_name(f".{path.name}.{os.getpid()}")
        arriving.write_text(f"{json.dumps(asdict(self), indent=1)}\n", encoding="utf-8")
        arriving.replace(path)

    def complaint(self, found: dict[str, str]) -> str | None:
        """What is wrong with a file that fits the published checksum and has these digests; None if nothing is."""
        if found["sha256"] == self.sha256:
            return None
        return (
            f"has the published {self.checksum}, but sha256 {found['sha256']}, and {self.sha256} was recorded "
            "when it was first verified"
        )
