"""The sections of a profile about images: their source, the splits, and the shards they are stored in."""

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainValidator, StringConstraints, model_validator

from pipeline import paths
from pipeline.config.section import PathText, PositiveInt, Section, Seed

ArchiveName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
CLASS_NAME = "a name is one line of text, without control characters and outer spaces"
SPLIT_NAME = r"^((voc20(07|11|12)|sbd)/[A-Za-z0-9_-]+|own/[^/\\]+)$"
SplitName = Annotated[str, StringConstraints(pattern=SPLIT_NAME)]

VOID = "void"  # the target in data.map of a class that is neither trained nor scored
MAX_TUNING = 0.5  # the largest share of train that data.tuning may hold out
URL_KINDS = ("https", "http", "file", "s3", "gs", "az", "hdfs")
_SECRET = re.compile(r"[?&][^=&]*(token|sig|secret|passw|credential|key)[^=&]*=", re.IGNORECASE)


class Drawing(Section):
    """The sample data set: images of simple shapes, drawn from a seed.

    num_train: images of the training split.
    num_val: images of the validation split.
    image_size: height and width of an image, in pixels.
    seed: of the drawings.
    """

    num_train: PositiveInt
    num_val: PositiveInt
    image_size: Annotated[int, Field(ge=48, le=1024)]
    seed: Seed


def _checked_url(url: str) -> str:
    """Refuse secrets: a profile's values end up in dvc.lock and MLflow."""
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
Checksum = Annotated[str, StringConstraints(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{8,64})$")]


class Archive(Section):
    """A published file.

    urls: mirrors, in the order in which they are tried.
    checksum: "md5:..." or "sha256:..." of the file.
    allowed_hosts: other hosts that a mirror may redirect to.
    """

    urls: Annotated[list[Url], Field(min_length=1)]
    checksum: Checksum
    allowed_hosts: list[str] = []


class Split(Section):
    """The images of one split.

    include: published lists of ids, in order. The first list with an id gives its label.
    exclude: lists whose ids are left out.
    count: the published number of images, for a check that allow_partial skips; None: no check.
    """

    include: Annotated[list[SplitName], Field(min_length=1)]
    exclude: list[SplitName] = []
    count: PositiveInt | None = None


class Splits(Section):
    """The lists of both splits.

    train: the images to train on.
    val: the images to score.
    """

    train: Split
    val: Split


def is_class_name(name: str) -> bool:
    """Return whether a line of classes.txt can hold the name."""
    return name == name.strip() and bool(re.fullmatch(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+", name))


def _checked_location(where: str) -> str:
    if "@" in where or _SECRET.search(where):
        raise ValueError("must not hold a password or token; credentials come from the environment")
    folder, _, name = where.rstrip("/").rpartition("/")
    return (folder if name.endswith(".tar") else where).rstrip("/")


Location = Annotated[PathText, AfterValidator(_checked_location)]


class ShardSource(Section):
    """Shards that are there already, as `fcn shards index` or another project wrote their manifest.

    train, val: a folder with a manifest, or tars beside one: s3://bucket/train/{000000..000146}.tar.
    """

    train: Location
    val: Location


class Source(Section):
    """The source of the images: exactly one of these keys.

    sample: the sample data set, drawn by this project.
    archives: published archives by name.
    local: a folder with VOCdevkit/ and benchmark_RELEASE/ as the archives unpack, a folder with the archives, or an
        archive.
    own: a folder with images/, masks/, splits/ and classes.txt; see docs/own-data.md.
    shards: WebDataset tars that are there already; see docs/object-storage.md.
    """

    sample: Drawing | None = None
    archives: dict[ArchiveName, Archive] = {}
    local: str | None = None
    own: str | None = None
    shards: ShardSource | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "Source":
        given = [name for name in type(self).model_fields if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "exactly one of sample, archives, local, own and shards must be given, "
                f"found {' and '.join(given) or 'none'}"
            )
        names = [_file_name(archive.urls[0]) for archive in self.archives.values()]
        if len(set(names)) != len(names):
            raise ValueError(f"archives: {', '.join(names)}: the first URLs must end in different file names")
        return self


def _checked_reason(text: str) -> str:
    if len(text.split()) < 3:
        raise ValueError(
            f"must be a sentence that says why images may be trained and evaluated on, got {text!r}"
        )
    return " ".join(text.split())


Reason = Annotated[str, AfterValidator(_checked_reason)]


def _checked_tuning(value: Any) -> float | list[str]:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_TUNING:
        return float(value)
    if isinstance(value, list) and all(
        isinstance(name, str) and re.fullmatch(SPLIT_NAME, name) for name in value
    ):
        return value
    raise ValueError(
        f"must be a share of train from 0 to {MAX_TUNING}, or lists such as [sbd/val], got {value!r}"
    )


# One validator for both kinds, because pydantic's union gives a message for each
Tuning = Annotated[float | list[str], PlainValidator(_checked_tuning)]


class Data(Section):
    """The data set.

    source: where the images come from.
    allow_partial: whether ids whose files are missing are skipped. Otherwise an incomplete data set is refused.
    map: by class of classes.txt in data.source.own, a class of `classes` or "void"; a class left out keeps its name.
    allow_leak: sentences that say why an image may be both trained and evaluated on; empty: it may not.
    near_duplicates: what follows from images of val that show the same picture as an image of train, turned, mirrored,
        rescaled or recompressed: "warn", "refuse", or "ignore", which does not look for them.
    tuning: images to choose settings on, which are not trained on: a share of train, or lists as in `splits`. Periodic
        validation and sweeps score them. 0 or []: none; periodic validation then scores val.
    classes: names in the order of the label values, background first.
    splits: the images of the training and of the validation split; None with data.source.shards.
    """

    source: Source
    allow_partial: bool
    map: dict[str, str] = {}
    allow_leak: list[Reason] = []
    near_duplicates: Literal["warn", "refuse", "ignore"] = "warn"
    tuning: Tuning = 0.0
    classes: Annotated[list[str], Field(min_length=2, max_length=255)]
    splits: Splits | None

    @model_validator(mode="after")
    def _has_lists(self) -> "Data":
        if (self.splits is None) != (self.source.shards is not None):
            raise ValueError("splits must be null with source.shards, and lists of ids with any other source")
        if self.splits is None and self.tuning:
            raise ValueError("tuning must be 0 with source.shards, whose splits are made already")
        return self

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that have shards."""
        return ("train", "val", "tuning") if self.tuning else ("train", "val")

    @property
    def validation_split(self) -> Literal["tuning", "val"]:
        """The split that is scored while a net trains."""
        return "tuning" if self.tuning else "val"

    @model_validator(mode="after")
    def _has_distinct_classes(self) -> "Data":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        if wrong := [name for name in self.classes if not is_class_name(name)]:
            raise ValueError(f"class {wrong[0]!r}: {CLASS_NAME}")
        return self

    @model_validator(mode="after")
    def _tunes_on_other_lists_than_val(self) -> "Data":
        lists = self.tuning if isinstance(self.tuning, list) else []
        if self.splits and (both := sorted({*lists} & {*self.splits.val.include})):
            raise ValueError(
                f"tuning and splits.val both have {', '.join(both)}; settings chosen on the images of a score make it "
                "too good: choose them on a part of train"
            )
        return self

    @model_validator(mode="after")
    def _maps_to_its_classes(self) -> "Data":
        if self.map and self.source.own is None:
            raise ValueError(
                "map is for data.source.own; the labels of other sources have the published classes"
            )
        if unknown := sorted(set(self.map.values()) - {*self.classes, VOID}):
            raise ValueError(
                f"map leads to {', '.join(unknown)}; known: {', '.join(self.classes)} of data.classes, and {VOID}"
            )
        return self


def _checked_destination(destination: str) -> str:
    if "://" in destination and not re.fullmatch(r"s3://[a-z0-9.-]{3,63}(/[A-Za-z0-9._/-]*)?", destination):
        raise ValueError(
            "must be a folder or s3://bucket/prefix; keys and endpoint come from the environment (AWS_...)"
        )
    return destination


class Shards(Section):
    """The shards: tar files of samples.

    samples_per_shard: images in one tar.
    seed: of the order in which images are written.
    destination: a folder or s3://bucket/prefix, below which <profile>/<split> is written; None: data/.
    """

    samples_per_shard: PositiveInt
    seed: Seed
    destination: Annotated[PathText, AfterValidator(_checked_destination)] | None = None

    def location(self, profile: str, split: str) -> Path | str | None:
        """Return where a split's shards go: an absolute folder, or s3://...; None: data/."""
        if self.destination is None:
            return None
        if self.destination.startswith("s3://"):
            return f"{self.destination.rstrip('/')}/{profile}/{split}"
        return paths.named(self.destination).absolute() / profile / split
