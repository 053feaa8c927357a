"""Files of weights: one schema, written whole or not at all, hashed, never unpickled.

torch.load's own checks accept most single-bit flips, so every file carries the sha256 of its content.
"""

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import CheckpointError

FORMAT = "fcn/1"
SAFETENSORS = ".safetensors"
PLAIN = (bool, int, float, str, type(None))
KEPT = 3  # working checkpoints of a run: the newest may be damaged, and the one before it too


def save(path: Path, kind: str, content: Mapping[str, Any]) -> str:
    """Writes a file of nested dicts, lists, numbers, strings and tensors; returns the sha256 of its content.

    kind: what it is ("model", "backbone", "training"), checked when it is loaded.
    A path that ends in .safetensors becomes one: of content whose tensors are its state_dict, and the rest JSON.
    """
    digest = content_digest(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        if path.suffix == SAFETENSORS:
            file.write(_as_safetensors(kind, digest, content))
        else:
            torch.save({"format": FORMAT, "kind": kind, "sha256": digest, "content": dict(content)}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return digest


def load(path: Path, kind: str) -> tuple[dict[str, Any], str]:
    """(content, its sha256) of a file that `save` wrote, tensors on the CPU; CheckpointError if it is anything else."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; `dvc repro` makes it")
    file = _load_safetensors(path) if path.suffix == SAFETENSORS else load_weights(path)
    if not isinstance(file, dict) or file.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no file of format {FORMAT!r}; it was not written by this project")
    if file.get("kind") != kind:
        raise CheckpointError(f"{path} holds a {file.get('kind')}, expected a {kind}")
    try:
        found = content_digest(file.get("content"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if found != file.get("sha256"):
        raise CheckpointError(
            f"{path} is damaged: its content has sha256 {found}, it was {file.get('sha256')}"
        )
    return file["content"], found


def load_weights(path: Path) -> Any:
    """What torch.save wrote, tensors on the CPU; CheckpointError if it is damaged or would run code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a pickle protocol that a flipped bit made up
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise nearly anything, AssertionError among it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be loaded as weights alone: {reason}") from error


def _as_safetensors(kind: str, digest: str, content: Mapping[str, Any]) -> bytes:
    """The state_dict as tensors, everything else as JSON in the metadata, with the order of both."""
    state = content["state_dict"]
    about = {key: json.dumps(value) for key, value in content.items() if key != "state_dict"}
    about |= {"keys": json.dumps(list(content)), "state_dict": json.dumps(list(state))}
    about |= {"format": FORMAT, "kind": kind, "sha256": digest}
    return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in state.items()}, about)


def _load_safetensors(path: Path) -> dict[str, Any]:
    """What `_as_safetensors` was given, {} if another program wrote the file; CheckpointError if it is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                return {}
            content = {key: json.loads(about[key]) for key in json.loads(about["keys"])}
            if sorted(content["state_dict"]) != sorted(file.keys()):
                raise ValueError("its list of layers is not that of its tensors")
            content["state_dict"] = {name: file.get_tensor(name) for name in content["state_dict"]}
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path} cannot be loaded as safetensors: {error}") from error
    return {key: about.get(key) for key in ("format", "kind", "sha256")} | {"content": content}


def misfit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """How one state_dict differs from the one it is to replace, layer by layer; "" if it fits."""
    shapes = [
        f"{name} is {tuple(tensor.shape)} and should be {tuple(expected[name].shape)}"
        for name, tensor in found.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    differing = {
        "it lacks ": [name for name in expected if name not in found],
        "it has too many: ": [name for name in found if name not in expected],
        "": shapes,
    }
    return "; ".join(
        said + ", ".join(items[:4]) + (f" and {len(items) - 4} more" if len(items) > 4 else "")
        for said, items in differing.items()
        if items
    )


def content_digest(content: Any) -> str:
    """sha256 (hex) over nested dicts, lists, tuples, strings, numbers, None and tensors: values, dtypes and shapes."""
    digest = hashlib.sha256()
    _feed(digest, content)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    match value:
        case Mapping():
            digest.update(b"{%d:" % len(value))
            for key, item in value.items():
                _feed(digest, key)
                _feed(digest, item)
        case list() | tuple():
            digest.update(b"[%d:" % len(value))
            for item in value:
                _feed(digest, item)
        case Tensor():
            digest.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        case _ if (
            type(value) not in PLAIN
        ):  # a subclass, such as numpy's float64, would be refused on loading
            raise TypeError(f"a checkpoint holds no {type(value).__name__}")
        case float():
            digest.update(b"f" + struct.pack("<d", value))
        case str():
            encoded = value.encode()
            digest.update(b"s%d:" % len(encoded) + encoded)
        case _:
            digest.update(repr(value).encode() + b";")


def save_step(folder: Path, step: int, content: Mapping[str, Any]) -> None:
    """Adds a run's working checkpoint and removes all but the newest KEPT.

    Later ones are removed first: the run fell back past them, because they are damaged.
    """
    newest = _step_path(folder, step)
    save(newest, "training", content)
    steps = _steps(folder)
    for other in [path for path in steps if path > newest] + [path for path in steps if path <= newest][
        KEPT:
    ]:
        other.unlink()


def latest_step(folder: Path, identity: str) -> dict[str, Any] | None:
    """The newest undamaged working checkpoint of a run, or None if there is none.

    A damaged one is named and passed over. CheckpointError if it belongs to another configuration than `identity`.
    """
    for path in _steps(folder):
        try:
            content, _ = load(path, "training")
        except CheckpointError as error:
            print(f"{error}; falling back to the checkpoint before it", flush=True)
            continue
        if content["identity"] != identity:
            raise CheckpointError(
                f"{path} belongs to run {content['identity']}, this is {identity}; remove {folder}"
            )
        return content
    return None


def load_step(folder: Path, step: int) -> dict[str, Any]:
    """The working checkpoint of a step."""
    return load(_step_path(folder, step), "training")[0]


def _step_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)
