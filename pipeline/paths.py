"""Paths of a profile's results, relative to the project's root; dvc.yaml names the same ones."""

from pathlib import Path

CHAIN = ("fcn32s", "fcn16s", "fcn8s")  # each starts from the one before it, the first from the backbone
# Outside DVC's outs, which DVC empties before a stage runs
DOWNLOADS = Path("downloads")  # archives, and `.part` files of unfinished ones
RUNS = Path("runs")  # working checkpoints
VERIFIED = RUNS / ".verified"  # records of shards whose sha256 was checked


def source(profile: str) -> Path:
    """The fingerprint of a user's own folder."""
    return Path("data", profile, "source.json")


def choice(profile: str) -> Path:
    """Whether scores on validation images decide what training keeps."""
    return Path("data", profile, "choice.json")


def start(profile: str) -> Path:
    """The fingerprint of the net that `train.start` names."""
    return Path("models", profile, "start.json")


def raw(profile: str) -> Path:
    return Path("data", profile, "raw")


def shards(profile: str, split: str) -> Path:
    return Path("data", profile, "shards", split)


def sharding(profile: str, split: str) -> Path:
    """Unfinished shards: on the disk of the finished ones, and outside DVC's outs."""
    return Path("data", profile, ".sharding", split)


def inspection(profile: str) -> Path:
    return Path("data", profile, "inspection")


def model(profile: str, net: str) -> Path:
    return Path("models", profile, f"{net}.pt")


def metrics(profile: str, net: str) -> Path:
    return Path("metrics", profile, f"{net}.json")


def per_image(profile: str, net: str) -> Path:
    return Path("metrics", profile, f"{net}.parquet")


def curve(profile: str, net: str) -> Path:
    return Path("curves", profile, f"{net}.json")


def figures(profile: str, net: str) -> Path:
    """A folder of images."""
    return Path("figures", profile, net)


def report(profile: str) -> Path:
    return Path("reports", profile)
