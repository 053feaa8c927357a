"""The content of a sweep's file: which keys of a profile are tried with which values, and when a trial ends early."""

import copy
import itertools
import math
import random
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from pipeline import config
from pipeline.config.section import PositiveFloat, PositiveInt, Section, Seed
from pipeline.errors import ConfigError
from pipeline.files import and_more

Values = dict[str, Any]  # by a profile's dotted key, such as "nets.fcn32s.lr"

MAX_TRIALS = 10_000
# Keys that a sweep must not vary, and why
NOT_VARIED = {
    "data.source": "trials are compared on the same images",
    "data.classes": "trials are compared on the same classes",
    "data.map": "trials are compared on the same classes",
    "data.tuning": "trials are compared on the same images; give it once under `fixed`",
    "data.allow_leak": "it changes no score",
    "data.near_duplicates": "it changes no score",
    "data.splits.val": "settings must not be chosen by the images of the final score",
    "evaluate": "settings must not be chosen by the images of the final score",
    "run": "these keys change no score; give them under `fixed`",
    "shards.destination": "it changes no score",
}


class Range(Section):
    """An interval to draw from. Two whole numbers give whole numbers.

    low, high: both ends belong to it.
    log: draw the logarithm uniformly, for values of several magnitudes.
    """

    low: float | int
    high: float | int
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if isinstance(self.low, int) and isinstance(self.high, int) and max(-self.low, self.high) > 2**63:
            raise ValueError("whole numbers must have at most 63 bits")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, got {self.low}")
        return self

    def draw(self, generator: random.Random) -> float | int:
        is_whole = isinstance(self.low, int) and isinstance(self.high, int)
        low, high = (self.low, self.high + 1) if is_whole else (self.low, self.high)
        value = generator.uniform(low, high)
        if self.log:
            value = math.exp(generator.uniform(math.log(low), math.log(high)))
        if is_whole:
            return min(math.floor(value), int(self.high))
        rounded = float(f"{value:.4g}")  # a name and a profile show all of its digits
        return min(
            max(rounded, float(self.low)), float(self.high)
        )  # an end with more digits is a limit as well


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "range"


# Its kind decides which one is validated, or a mistake would have a message for each
Domain = Annotated[Annotated[list[Any], Tag("list")] | Annotated[Range, Tag("range")], Discriminator(_kind)]


class Asha(Section):
    """ASHA, asynchronous successive halving: a trial that is worse than others at the same progress ends early.

    first: share of a trial's iterations after which it may end for the first time.
    keep: a trial goes on if its score is in the best 1/keep of the trials that came as far. They are compared again
        when it has come `keep` times as far, and so on.
    """

    first: Annotated[float, Field(gt=0, lt=1)] = 0.125
    keep: Annotated[float, Field(ge=2, le=16)] = 3.0


class Sweep(Section):
    """A sweep.

    profile: the name of the profile that is varied.
    net: the last net of a trial; "fcn32s" trains one net, "fcn8s" the whole chain.
    metric: the score by which trials are compared, of the images that data.tuning leaves out of train.
    search: "grid" tries every combination of `space`; "random" draws num_trials.
    num_trials: the number of random trials.
    hours: no trial runs longer than until this time after the start, over all calls; None: no limit.
    seed: of the random trials, and of the order in which trials start.
    fixed: other values than the profile's for all trials, by dotted key.
    space: by dotted key, a list of values or, for "random", a range.
    asha: when trials end early; None: each runs to its last iteration.
    at_once: trials that run at the same time; None: as many as there is room for.
    """

    profile: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
    net: Literal["fcn32s", "fcn16s", "fcn8s"] = "fcn32s"
    metric: Literal["val_mean_iu", "val_pixel_acc"] = "val_mean_iu"
    search: Literal["grid", "random"]
    num_trials: Annotated[int, Field(gt=0, le=MAX_TRIALS)] | None = None
    hours: PositiveFloat | None = None
    seed: Seed = 0
    fixed: Values = {}
    space: Annotated[dict[str, Domain], Field(min_length=1)]
    asha: Asha | None = None
    at_once: PositiveInt | None = None

    @model_validator(mode="after")
    def _has_values_to_try(self) -> "Sweep":
        ranges = [key for key, domain in self.space.items() if isinstance(domain, Range)]
        if self.search == "grid" and ranges:
            raise ValueError(f"space.{ranges[0]}: a grid needs a list of values, not a range")
        if self.search == "grid" and self.num_trials is not None:
            raise ValueError("num_trials is for search random; a grid tries every combination")
        if self.search == "random" and self.num_trials is None:
            raise ValueError("search random needs num_trials")
        for key, domain in self.space.items():
            if isinstance(domain, list) and len(domain) < 2:
                raise ValueError(
                    f"space.{key} must have at least 2 values, got {domain}; give one value under `fixed`"
                )
            if isinstance(domain, list) and any(domain.count(value) > 1 for value in domain):
                raise ValueError(f"space.{key}: values must differ from each other, got {domain}")
            for refused, reason in NOT_VARIED.items():
                if f"{key}.".startswith(f"{refused}.") or refused.startswith(f"{key}."):
                    raise ValueError(f"space.{key} cannot be varied, because of {refused}: {reason}")
            if key in self.fixed:
                raise ValueError(f"{key} is in both `fixed` and `space`")
        number = math.prod(len(domain) for domain in self.space.values() if isinstance(domain, list))
        if self.search == "grid" and number > MAX_TRIALS:
            raise ValueError(f"the grid has {number} combinations, more than {MAX_TRIALS}; use search random")
        return self

    def trials(self) -> list[Values]:
        """Return the values of `space` for each trial; the same at every call.

        Of a random search, more trials begin with the same ones.
        """
        if self.search == "grid":
            lists = [domain for domain in self.space.values() if isinstance(domain, list)]
            return [dict(zip(self.space, values, strict=True)) for values in itertools.product(*lists)]
        generator, drawn = random.Random(self.seed), []
        for _ in range(100 * (self.num_trials or 0)):
            values = {
                key: generator.choice(domain) if isinstance(domain, list) else domain.draw(generator)
                for key, domain in self.space.items()
            }
            if values not in drawn:
                drawn.append(values)
            if len(drawn) == self.num_trials:
                return drawn
        raise ConfigError(
            f"num_trials is {self.num_trials}, but `space` has no more than {len(drawn)} combinations"
        )


def read(path: Path, root: Path) -> tuple[Sweep, list[config.Profile]]:
    """Return a sweep, and the profile of each of its trials.

    path: of the sweep's file.
    root: the project's folder.

    Raises ConfigError if the file, or the profile of a trial, has a mistake: before any trial runs.
    """
    if not path.exists():
        known = [str(file.relative_to(root)) for file in sorted((root / "sweeps").glob("*.yaml"))]
        here = f"sweeps here: {', '.join(known)}" if known else "no sweeps here, run from the project's root"
        raise ConfigError(f"{path} is missing; {here}")
    if path.resolve().parent == (root / config.PROFILES).resolve():
        raise ConfigError(f"{path} is a profile; a sweep names it and says what to try (docs/sweeps.md)")
    sweep = config.validated(Sweep, path)
    values = config.read_values(sweep.profile, root)
    profiles = []
    for trial in sweep.trials():
        changed = with_values(values, sweep.fixed | trial, path)
        where = Path(f"{path} ({describe(trial)})")
        profiles.append(config.validate(config.Profile, changed, where))
    return sweep, profiles


def with_values(values: Values, changes: Values, path: Path) -> Values:
    """Return the nested values of a profile with others, which are given by dotted key."""
    changed = copy.deepcopy(values)
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = changed
        for name in sections:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{path}: {key}: {name} is not a section of keys and values")
        section[last] = value
    return changed


def describe(values: Values) -> str:
    """Return values as text, each by the last part of its key: "lr=0.001, weight_decay=0.01"."""
    last_parts = [key.rpartition(".")[2] for key in values]
    names = {
        key: last if last_parts.count(last) == 1 else key
        for key, last in zip(values, last_parts, strict=True)
    }
    return ", ".join(f"{names[key]}={_plain(value)}" for key, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"[{and_more([_plain(item) for item in value])}]"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)  # a float with all of its digits: trials of other values need other names
