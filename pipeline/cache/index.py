"""The blocks of a split: byte ranges of its shards, with the sha256 of every member in them."""

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import whole

INDEX = "index.npz"


@dataclass(frozen=True)
class Index:
    """B blocks with M members.

    where: the folder of the files, such as s3://bucket/prefix, as an array without dimensions.
    files: (F,) names of the files.
    file_of: (B,) each block's number in `files`.
    start, end: (B,) its bytes in the file.
    first_member: (B + 1,) block b holds the members first_member[b] .. first_member[b + 1] - 1.
    member_start, member_size: (M,) a member's bytes in the file.
    member_sha256: (M, 32) uint8.
    """

    where: NDArray[np.str_]
    files: NDArray[np.str_]
    file_of: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    first_member: NDArray[np.int64]
    member_start: NDArray[np.int64]
    member_size: NDArray[np.int64]
    member_sha256: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def key(self) -> str:
        """The blocks' folder in a cache: equal for equal blocks of one location.

        A copy elsewhere has blocks of its own, because the first location may be changed or gone.
        """
        digest = hashlib.sha256("\n".join([str(self.where), *self.files.tolist()]).encode())
        for array in (self.start, self.end, self.first_member, self.member_start, self.member_sha256):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    @property
    def num_bytes(self) -> int:
        return int((self.end - self.start).sum())

    def name(self, block: int) -> str:
        """Return a block's name in messages: file and byte range."""
        return (
            f"{self.where}/{self.files[self.file_of[block]]} bytes {self.start[block]}-{self.end[block] - 1}"
        )

    def is_intact(self, block: int, data: bytes) -> bool:
        """Return whether a block's bytes have the size and sha256 of all members."""
        start, view = int(self.start[block]), memoryview(data)
        members = range(int(self.first_member[block]), int(self.first_member[block + 1]))
        return len(data) == self.end[block] - start and all(
            hashlib.sha256(
                view[(first := int(self.member_start[m]) - start) : first + int(self.member_size[m])]
            ).digest()
            == self.member_sha256[m].tobytes()
            for m in members
        )

    def write(self, path: Path) -> None:
        with whole(path, is_shared=True) as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def read(cls, path: Path) -> "Index | None":
        """Return the index in a file; None if it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except Exception:  # zipfile and numpy raise many kinds
            return None
