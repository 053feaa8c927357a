"""The sections of a profile about images: where they come from, who is in which split, how they are stored."""

import re
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from pipeline.config.section import PositiveFloat, PositiveInt, Section, Seed

ArchiveName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
SplitName = Annotated[str, StringConstraints(pattern=r"^(voc20(07|11|12)|sbd|own)/[A-Za-z0-9_-]+$")]

URL_KINDS = ("https", "http", "file", "s3", "gs", "az", "hdfs")
_SECRET = re.compile(r"[?&][^=&]*(token|sig|secret|passw|credential|key)[^=&]*=", re.IGNORECASE)


class Drawing(Section):
    """The sample data set: so many images of image_size x image_size pixels, drawn from a seed."""

    num_train: PositiveInt
    num_val: PositiveInt
    image_size: Annotated[int, Field(ge=48, le=1024)]
    seed: Seed


def _checked_url(url: str) -> str:
    """A profile's values end up in dvc.lock and MLflow, so no secret must be among them."""
    if "@" in url or url.partition("://")[0] not in URL_KINDS:
        raise ValueError(f"must be a URL of {', '.join(URL_KINDS)}, without user:password@")
    if _SECRET.search(url):
        raise ValueError(
            "must not hold a token or signature, which would end up in dvc.lock; use s3:// or gs:// with its keys in "
            "the environment, or put the file into downloads/ yourself"
        )
    if not _file_name(url):
        raise ValueError("must end in the name of a file")
    return url


def _file_name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name


Url = Annotated[str, AfterValidator(_checked_url)]


class Archive(Section):
    """A published archive: mirrors in the order to try, and a checksum "md5:..." or "sha256:...".

    allowed_hosts: other hosts a mirror may redirect to.
    """

    urls: Annotated[list[Url], Field(min_length=1)]
    checksum: Annotated[str, StringConstraints(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{8,64})$")]
    max_size_gb: PositiveFloat = 4.0
    allowed_hosts: list[str] = []


class Split(Section):
    """Ids of the listed splits in order, the first with an id gives its label; then without those of `exclude`.

    count: how many there must be, where a number is published; not held with allow_partial.
    """

    include: Annotated[list[SplitName], Field(min_length=1)]
    exclude: list[SplitName] = []
    count: PositiveInt | None = None


class Splits(Section):
    train: Split
    val: Split


class Source(Section):
    """Where the images come from: exactly one of the four.

    local: a folder with VOCdevkit/ and benchmark_RELEASE/ as the archives unpack, or with the archives, or an archive.
    own: a folder with images/, masks/, splits/ and classes.txt, as docs/own-data.md describes it.
    """

    sample: Drawing | None = None
    archives: dict[ArchiveName, Archive] = {}
    local: str | None = None
    own: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "Source":
        given = [name for name in ("sample", "archives", "local", "own") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"exactly one of sample, archives, local and own must be given, found {found}")
        names = [_file_name(archive.urls[0]) for archive in self.archives.values()]
        if len(set(names)) != len(names):
            raise ValueError(f"archives: {', '.join(names)}: the first URLs must end in different file names")
        return self


def _refuse_no_reason(text: str) -> str:
    if len(text.split()) < 3:
        raise ValueError(
            f"must be a sentence that says why images may be trained and evaluated on, got {text!r}"
        )
    return " ".join(text.split())


Reason = Annotated[str, AfterValidator(_refuse_no_reason)]


class Data(Section):
    """classes: names in label order, background first.

    allow_partial: use those ids of a list whose files are there, instead of refusing an incomplete data set.
    allow_leak: why images may be both trained and evaluated on, a sentence or more; none: they may not.
    """

    source: Source
    allow_partial: bool
    allow_leak: list[Reason] = []
    classes: Annotated[list[str], Field(min_length=2, max_length=255)]
    splits: Splits

    @model_validator(mode="after")
    def _has_distinct_classes(self) -> "Data":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        return self


def _refuse_other_stores(destination: str) -> str:
    if "://" in destination and not re.fullmatch(r"s3://[a-z0-9.-]{3,63}(/[A-Za-z0-9._/-]*)?", destination):
        raise ValueError(
            "must be a folder or s3://bucket/prefix; keys and endpoint come from the environment (AWS_...)"
        )
    return destination


class Shards(Section):
    """samples_per_shard images in a tar; seed: of the order they are written in.

    destination: a folder or s3://bucket/prefix for the shards, below which <profile>/<split> is made; data/ if None.
    """

    samples_per_shard: PositiveInt
    seed: Seed
    destination: Annotated[str, AfterValidator(_refuse_other_stores)] | None = None

    def place(self, profile: str, split: str) -> Path | str | None:
        """Where else than in data/ a split's shards go: a folder, absolute, or s3://..."""
        if self.destination is None:
            return None
        if self.destination.startswith("s3://"):
            return f"{self.destination.rstrip('/')}/{profile}/{split}"
        return Path(self.destination).expanduser().absolute() / profile / split
