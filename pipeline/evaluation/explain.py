"""From a model or a score back to what made it: code, recipe, data, parents, versions, hardware.

What a file does not say is said to be lacking; nothing is guessed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.errors import CheckpointError
from pipeline.evaluation import compare
from pipeline.evaluation.bootstrap import in_words
from pipeline.models import checkpoint

LACKING = "lacking: the file does not say it"


@dataclass(frozen=True)
class Part:
    """One file's story. facts: (what, the answer or why there is none), in order."""

    title: str
    facts: tuple[tuple[str, str], ...]

    def as_text(self) -> str:
        width = max(len(what) for what, _ in self.facts)
        return "\n".join([self.title, *(f"  {what:{width}}  {said}" for what, said in self.facts)])


def explain(what: str, folder: Path) -> Iterator[Part]:
    """The story of a model file, or of what compare.load takes and the model it scored, then of each parent.

    folder: of compare.load. UserError if there is nothing of that name.
    """
    if Path(what).suffix in (".pt", checkpoint.SAFETENSORS):
        yield from _chain(Path(what), None)
        return
    result = compare.load(what, folder)
    values = result.values
    yield Part(what, tuple(_score_facts(result)))
    profile, net, digest = (values.get(key) for key in ("profile", "net", "model_sha256"))
    if profile and net and digest:
        yield from _chain(paths.model(profile, net), digest)


def _score_facts(result: compare.Result) -> Iterator[tuple[str, str]]:
    values = result.values
    yield "mean IU", in_words(values, "mean_iu")
    yield "pixel accuracy", in_words(values, "pixel_acc")
    yield "scored on", compare.split_of(result)
    yield "averaging", compare.averaging_of(result)
    yield "its data digest", values.get("val_digest") or LACKING
    yield "model", values.get("model_sha256") or LACKING
    leaked = values.get("num_leaked")
    yield "of these, trained on", LACKING if leaked is None else str(leaked)


def _chain(path: Path, digest: str | None) -> Iterator[Part]:
    """A model's file and those it was started from; digest: the sha256 it is to have, if one is recorded."""
    if digest is not None and not path.is_file():
        yield Part(str(path), (("not here", f"no such file; the one that was used has sha256 {digest}"),))
        return
    kind = "backbone" if path.stem == "backbone" else "model"
    try:
        content, found = checkpoint.load(path, kind)
    except CheckpointError as error:
        if digest is None:  # it is what was asked for
            raise
        yield Part(str(path), (("not read", str(error)),))
        return
    facts = [("sha256", found)]
    if digest not in (None, found):
        facts.append(
            ("mismatch", f"the one that was used has sha256 {digest}; this file was made anew since")
        )
    if kind == "backbone":
        yield Part(str(path), (*facts, ("weights", content.get("source") or LACKING)))
        return
    lineage = content.get("lineage") or {}
    yield Part(str(path), (*facts, *_model_facts(content, lineage)))
    if digest in (None, found) and lineage.get("parent") and lineage.get("parent_sha256"):
        parent = path.with_name(f"{lineage['parent']}{path.suffix}")
        yield from _chain(parent, lineage["parent_sha256"])


def _model_facts(content: Mapping[str, Any], lineage: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    origin = content.get("origin") or {}
    git = origin.get("git") or {}
    changed = {"true": ", with uncommitted changes", "false": ""}.get(git.get("git_dirty", ""), "")
    yield "git commit", f"{git['git_commit']}{changed}" if "git_commit" in git else LACKING
    yield "run", lineage.get("identity") or LACKING
    yield "network", _listed(content.get("model"))
    yield "recipe", _listed(origin.get("recipe"))
    yield "data digest", lineage.get("data_digest") or LACKING
    yield "trained on", _trained_on(content.get("trained_on"))
    yield "versions", _listed(origin.get("versions"))
    yield "hardware", _listed(origin.get("hardware"))
    parent, digest = lineage.get("parent"), lineage.get("parent_sha256")
    yield "parent", f"{parent}, sha256 {digest or LACKING}" if parent else LACKING


def _listed(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) if values else LACKING


def _trained_on(records: list[Mapping[str, Any]] | None) -> str:
    if not records:
        return LACKING
    return "; ".join(
        f"{record['split']}: {'nobody knows which' if record['keys'] is None else len(record['keys'])} images"
        for record in records
    )
