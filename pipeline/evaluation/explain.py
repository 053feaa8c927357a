"""Trace a score or a model back to its origin: code, recipe, data, parents, versions, hardware.

A fact that a file does not hold is reported as missing; it is never guessed from other files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.curves import kept_in_words
from pipeline.errors import CheckpointError
from pipeline.evaluation.bootstrap import with_interval
from pipeline.evaluation.results import Result, averaging_of, split_of
from pipeline.models import checkpoint

MISSING = "missing: the file does not hold it"


@dataclass(frozen=True)
class FileFacts:
    """The facts of one file.

    facts: (name, value or why there is none), in order.
    """

    title: str
    facts: tuple[tuple[str, str], ...]

    def as_text(self) -> str:
        width = max(len(name) for name, _ in self.facts)
        return "\n".join([self.title, *(f"  {name:{width}}  {value}" for name, value in self.facts)])


def explain_result(result: Result, root: Path = Path()) -> Iterator[FileFacts]:
    """Yield the facts of a score, then those of the scored model and its parents.

    root: the folder of models/, of a project or of one seed.
    """
    values = result.values
    num_leaked = values.get("num_leaked")
    facts = {
        "mean IU": with_interval(values, "mean_iu"),
        "pixel accuracy": with_interval(values, "pixel_acc"),
        "scored on": split_of(result),
        "averaging": averaging_of(result),
        "val data digest": values.get("val_digest") or MISSING,
        "model": values.get("model_sha256") or MISSING,
        "num leaked": MISSING if num_leaked is None else str(num_leaked),
    }
    yield FileFacts(result.name, tuple(facts.items()))
    profile, net, digest = (values.get(key) for key in ("profile", "net", "model_sha256"))
    if profile and net and digest:
        yield from explain_model(root / paths.model(profile, net), digest)


def explain_model(path: Path, digest: str | None = None) -> Iterator[FileFacts]:
    """Yield the facts of a model file, then of its parents.

    digest: the sha256 that a child or a score recorded, if there is one. If the file differs, that is reported, and
        its parents are not followed.

    Raises CheckpointError if the file is missing or damaged and no digest is given.
    """
    if digest is not None and not path.is_file():
        yield FileFacts(str(path), (("missing", f"no such file; the one that was used has sha256 {digest}"),))
        return
    kind = "backbone" if path.stem == "backbone" else "model"
    try:
        content, sha256 = checkpoint.load(path, kind)
    except CheckpointError as error:
        if digest is None:
            raise
        yield FileFacts(str(path), (("unreadable", str(error)),))
        return
    facts = [("sha256", sha256)]
    is_same = digest in (None, sha256)
    if not is_same:
        facts.append(("mismatch", f"the one that was used has sha256 {digest}; this file replaced it"))
    if kind == "backbone":
        yield FileFacts(str(path), (*facts, ("weights", content.get("source") or MISSING)))
        return
    lineage = content.get("lineage") or {}
    yield FileFacts(str(path), (*facts, *_model_facts(content, lineage).items()))
    if is_same and lineage.get("parent") and lineage.get("parent_sha256"):
        parent = path.with_name(f"{lineage['parent']}{path.suffix}")
        yield from explain_model(parent, lineage["parent_sha256"])


def _model_facts(content: Mapping[str, Any], lineage: Mapping[str, Any]) -> dict[str, str]:
    origin = content.get("origin") or {}
    git = origin.get("git") or {}
    uncommitted = ", with uncommitted changes" if git.get("git_dirty") == "true" else ""
    parent, digest = lineage.get("parent"), lineage.get("parent_sha256")
    return {
        "git commit": f"{git['git_commit']}{uncommitted}" if "git_commit" in git else MISSING,
        "run": lineage.get("identity") or MISSING,
        "network": _listed(content.get("model")),
        "recipe": _listed(origin.get("recipe")),
        "kept": kept_in_words(lineage["kept"]) if "kept" in lineage else MISSING,
        "data digest": lineage.get("data_digest") or MISSING,
        "trained on": _trained_on(content.get("trained_on")),
        "versions": _listed(origin.get("versions")),
        "hardware": _listed(origin.get("hardware")),
        "parent": f"{parent}, sha256 {digest or MISSING}" if parent else MISSING,
    }


def _listed(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) if values else MISSING


def _trained_on(records: list[Mapping[str, Any]] | None) -> str:
    if not records:
        return MISSING
    return "; ".join(
        f"{record['split']}: {'unknown' if record['keys'] is None else len(record['keys'])} images"
        for record in records
    )
