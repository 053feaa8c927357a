"""Paths of a profile's results, relative to the workspace; dvc.yaml names the same ones.

The workspace is the project itself, or the copy of it in which DVC runs an experiment.
"""

import re
from pathlib import Path

CHAIN = ("fcn32s", "fcn16s", "fcn8s")  # each starts from the one before it, the first from the backbone
EXPERIMENTS = Path(".dvc", "tmp", "exps")  # DVC's copies of the project, deleted when their experiments end
# Outside DVC's outs, which DVC empties before a stage runs. The first two are in the project, see `project`
DOWNLOADS = Path("downloads")  # archives, and `.part` files of unfinished ones
RUNS = Path("runs")  # working checkpoints
SEEDS = "seeds-"  # begins the name of a group of seeds
VERIFIED = RUNS / ".verified"  # records of shards whose sha256 was checked


def project(workspace: Path) -> Path:
    """Return the project that a workspace belongs to: itself, or what `dvc exp run --temp` or the queue has copied.

    What outlives an experiment belongs there: downloads, working checkpoints, MLflow's files.
    """
    for folder in workspace.absolute().parents:
        if folder.parts[-len(EXPERIMENTS.parts) :] == EXPERIMENTS.parts:
            return folder.parents[len(EXPERIMENTS.parts) - 1]
    return workspace


def profile_and_net(run: str) -> tuple[str, str] | None:
    """Return the parts of "profile/net", as in metrics/; None for another name, such as "fcn8s best_by=iu/person"."""
    parts = re.fullmatch(r"([A-Za-z0-9_-]+)/([A-Za-z0-9_-]+)", run)
    return (parts[1], parts[2]) if parts else None


def named(path: str) -> Path:
    """Return a path that a profile names; a relative one starts from the project, not from an experiment's copy."""
    return project(Path()) / Path(path).expanduser()


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
    """The images, which DVC does not keep."""
    return Path("data", profile, "raw")


def raw_record(profile: str) -> Path:
    """The digest of the images, which DVC keeps instead."""
    return Path("data", profile, "raw.json")


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


def group(profile: str, name: str) -> Path:
    """The folder of a group of variants: a folder for each, with models, metrics and curves as here, and a page."""
    return RUNS / profile / name
