"""The profile: params.yaml names it, profiles/<name>.yaml holds its values. Read once, validated, frozen."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import StringConstraints, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.config.data import Data as Data
from pipeline.config.data import Shards
from pipeline.config.data import Source as Source
from pipeline.config.data import Split as Split
from pipeline.config.data import Splits as Splits
from pipeline.config.messages import value_message, yaml_message
from pipeline.config.model import Backbone, Model
from pipeline.config.run import Evaluate, Run
from pipeline.config.section import Section
from pipeline.config.training import Exchange as Exchange
from pipeline.config.training import Net, Nets
from pipeline.config.training import Train as Train
from pipeline.config.training import Transforms as Transforms
from pipeline.errors import ConfigError
from pipeline.paths import CHAIN as CHAIN  # the order of the nets' recipes

PARAMS = Path("params.yaml")
PROFILES = Path("profiles")
STRIDE = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}


class UnknownProfileError(ConfigError):
    """No file of profiles/ has the name."""


class Profile(Section):
    """All values of a profile; each section's class describes its keys."""

    data: Data
    shards: Shards
    model: Model
    backbone: Backbone
    train: Train
    run: Run
    nets: Nets
    evaluate: Evaluate

    @model_validator(mode="after")
    def _has_a_range_of_workers(self) -> "Profile":
        if (self.run.min_workers or 1) > self.train.num_workers:
            raise ValueError(
                f"run.min_workers {self.run.min_workers} is more than train.num_workers {self.train.num_workers}"
            )
        return self

    @model_validator(mode="after")
    def _chooses_by_its_own_classes(self) -> "Profile":
        by, _, name = self.train.best_by.partition("/")
        if by == "iu" and name not in self.data.classes:
            raise ValueError(
                f"train.best_by is iu/{name}; known: {', '.join(self.data.classes)} of data.classes"
            )
        return self

    @model_validator(mode="after")
    def _weighs_its_own_classes(self) -> "Profile":
        weights, classes = self.train.class_weights, self.data.classes
        if isinstance(weights, dict) and (unknown := [name for name in weights if name not in classes]):
            raise ValueError(
                f"train.class_weights names {', '.join(unknown)}; known: {', '.join(classes)} of data.classes"
            )
        return self

    def net(self, name: str) -> Net:
        """Return the recipe of one net of CHAIN."""
        return getattr(self.nets, name)


class Params(Section):
    """The content of params.yaml."""

    profile: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]


S = TypeVar("S", bound=Section)


def load(root: Path = Path()) -> tuple[str, Profile]:
    """Return (name, values) of the profile that root/params.yaml names.

    Raises ConfigError with a line for each mistake: file, key, the values it may have and the value it has.
    """
    params = validated(Params, root / PARAMS)
    try:
        return params.profile, read(params.profile, root)
    except UnknownProfileError as error:
        raise UnknownProfileError(f"{PARAMS}: {error}") from None


def read(name: str, root: Path = Path()) -> Profile:
    """Return the values of a profile by name; ConfigError as `load` raises it."""
    return validated(Profile, path_of(name, root))


def read_values(name: str, root: Path = Path()) -> dict[str, Any]:
    """Return the values of a profile by name as its file has them; ConfigError if the profile has a mistake."""
    path = path_of(name, root)
    values = _values(Profile, path)
    validate(Profile, values, path)
    return values


def path_of(name: str, root: Path = Path()) -> Path:
    """Return the file of a profile; ConfigError names those that exist if there is none."""
    path = root / PROFILES / f"{name}.yaml"
    if not path.exists():
        known = sorted(file.stem for file in (root / PROFILES).glob("*.yaml"))
        where = "" if known else f"; run from the project's root, the checkout that holds {PROFILES}/"
        raise UnknownProfileError(f"unknown profile {name!r}; known: {', '.join(known) or 'none'}{where}")
    return path


def validated(section: type[S], path: Path) -> S:
    """Return the content of a YAML file; ConfigError with a line for each mistake."""
    return validate(section, _values(section, path), path)


def _values(section: type[S], path: Path) -> Any:
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing; run from the project's root, the checkout that holds {PARAMS}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise ConfigError(f"{path} is not YAML: {yaml_message(error)}") from None
    if values is None:
        raise ConfigError(f"{path} is empty; it must give {', '.join(section.model_fields)}")
    return values


def validate(section: type[S], values: Any, path: Path) -> S:
    """Return values as a section; ConfigError with a line for each mistake.

    path: the file that the values are from, for the messages.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        messages = [value_message(section, path, detail) for detail in error.errors()]
        raise ConfigError("\n".join(messages)) from None
