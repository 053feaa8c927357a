"""Profiles, models and runs as users name them: by name or by path; a message about a missing one names those there."""

import argparse
import re
from pathlib import Path

from pipeline.errors import CheckpointError, ResultError, UserError

MODEL_SUFFIXES = (".pt", ".pt2", ".onnx", ".safetensors")


def profile_name(text: str) -> str:
    """Return the profile's name, as an argument type; the path of its file is understood."""
    name = re.sub(r"^(\./)?profiles/|\.yaml$", "", text)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise argparse.ArgumentTypeError(f"{text!r} is not a profile's name, such as sample")
    return name


def model_path(path: Path) -> Path:
    """Return the path of a model file; profile/net, or a net of the active profile, stands for its file.

    Raises CheckpointError if there is none.
    """
    from pipeline import paths

    if path.exists():
        return path
    if not path.suffix and not path.is_absolute() and len(path.parts) <= 2:
        profile, net = path.parts if len(path.parts) == 2 else (active_profile(), path.name)
        if (named := paths.model(profile, net)).exists():
            return named
    raise CheckpointError(f"{path} is missing; {whats_here('models', 'pt')}")


def run_name(text: str) -> str:
    """Return a run's name; the path of its model or of its scores stands for profile/net.

    Raises ResultError if it is a file of another kind, or if there are no scores of profile/net.
    """
    from pipeline import paths

    if result := re.fullmatch(r"(?:\./)?(?:models/(.+/.+)\.pt|metrics/(.+/.+)\.json)", text):
        text = result[1] or result[2]
    if Path(text).exists() or (
        Path(text).suffix in MODEL_SUFFIXES and " " not in text
    ):  # a run's name may end so
        raise ResultError(
            f"{text} is not a run; give one as PROFILE/NET, such as sample/fcn8s, or its id or name in MLflow"
        )
    if named := paths.profile_and_net(text):
        require_scores(paths.metrics(*named))
    return text


def require_scores(path: Path) -> Path:
    """Return the path of a metrics JSON; ResultError names those there if it is missing."""
    if not path.exists():
        raise ResultError(f"{path} is missing; {whats_here('metrics', 'json')}")
    return path


def whats_here(folder: str, suffix: str) -> str:
    """Return the active profile and the results of one kind that the working directory holds, as the end of a message.

    folder: "models" or "metrics".
    """
    from pipeline.files import and_more

    found = sorted(Path(folder).glob(f"*/*.{suffix}"), key=lambda path: path.stat().st_mtime, reverse=True)
    here = f"{folder} here: {and_more(found, 6)}" if found else f"there are no {folder} here"
    profile = active_profile()
    if not profile:
        return f"{here}; this is not the project's root, the checkout that holds params.yaml"
    return f"{here}; the active profile is {profile}, and `dvc repro` makes its {folder}"


def active_profile() -> str:
    """Return the name of the profile in params.yaml; "" if there is none."""
    from pipeline import config

    try:
        return config.validated(config.Params, config.PARAMS).profile
    except UserError:
        return ""
