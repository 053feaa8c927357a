"""Weight files: one schema, written whole or not at all, hashed, never unpickled.

torch.load's own checks accept most single-bit flips, so every file carries the sha256 of its content.
"""

import hashlib
import json
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.files import and_more, whole

FORMAT = "fcn/1"
SAFETENSORS = ".safetensors"
PLAIN = (bool, int, float, str, type(None))
NUM_KEPT = 3  # working checkpoints of a run: the newest may be damaged, and the one before it too
NUM_NAMED = 4  # the most layers that a message lists


def save(path: Path, kind: str, content: Mapping[str, Any]) -> str:
    """Write a file of nested dicts, lists, numbers, strings and tensors; return the sha256 of its content.

    path: a name that ends in .safetensors makes one. Its tensors are content["state_dict"]; the rest becomes JSON.
    kind: "model", "backbone" or "training"; `load` checks it.
    """
    digest = content_digest(content)
    with whole(path) as file:
        if path.suffix == SAFETENSORS:
            file.write(_to_safetensors(kind, digest, content))
        else:
            torch.save({"format": FORMAT, "kind": kind, "sha256": digest, "content": dict(content)}, file)
    return digest


def load(path: Path, kind: str) -> tuple[dict[str, Any], str]:
    """Return (content, its sha256) of a file that `save` wrote, tensors on the CPU.

    Raises CheckpointError if the file is missing, damaged, of another kind or of another program.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; `dvc repro` makes it")
    file = _load_safetensors(path) if path.suffix == SAFETENSORS else load_weights(path)
    if not isinstance(file, dict) or file.get("format") != FORMAT:
        raise CheckpointError(f"{path} has another format than {FORMAT!r}; this project did not write it")
    if file.get("kind") != kind:
        raise CheckpointError(f"{path} is a {file.get('kind')} file, expected a {kind} file")
    try:
        digest = content_digest(file.get("content"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if digest != file.get("sha256"):
        raise CheckpointError(
            f"{path} is damaged: its content has sha256 {digest}, recorded was {file.get('sha256')}"
        )
    return file["content"], digest


def load_weights(path: Path) -> Any:
    """Return the object in a file of torch.save, tensors on the CPU.

    Raises CheckpointError if the file is damaged, or would run code when unpickled.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a protocol number that a flipped bit changed
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise nearly anything, AssertionError among it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be loaded as weights alone: {reason}") from error


def _to_safetensors(kind: str, digest: str, content: Mapping[str, Any]) -> bytes:
    """Return a file with the state_dict as tensors, everything else as JSON metadata, and the order of both."""
    state = content["state_dict"]
    metadata = {key: json.dumps(value) for key, value in content.items() if key != "state_dict"}
    metadata |= {"keys": json.dumps(list(content)), "state_dict": json.dumps(list(state))}
    metadata |= {"format": FORMAT, "kind": kind, "sha256": digest}
    return safetensors.torch.save(
        {name: tensor.cpu().contiguous() for name, tensor in state.items()}, metadata
    )


def _load_safetensors(path: Path) -> dict[str, Any]:
    """Return the dict that `save` would give to torch.save; {} for a file of another program."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                return {}
            content = {key: json.loads(metadata[key]) for key in json.loads(metadata["keys"])}
            if sorted(content["state_dict"]) != sorted(file.keys()):
                raise ValueError("its list of layers differs from its tensors")
            content["state_dict"] = {name: file.get_tensor(name) for name in content["state_dict"]}
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path} cannot be loaded as safetensors: {error}") from error
    return {key: metadata.get(key) for key in ("format", "kind", "sha256")} | {"content": content}


def misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return how a state_dict differs from the expected one, layer by layer; "" if it fits."""
    wrong_shapes = [
        f"{name} is {tuple(tensor.shape)} and should be {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    differences = {
        "it lacks ": [name for name in expected if name not in state],
        "it has too many: ": [name for name in state if name not in expected],
        "": wrong_shapes,
    }
    return "; ".join(intro + and_more(layers, NUM_NAMED) for intro, layers in differences.items() if layers)


def content_digest(content: Any) -> str:
    """Return the sha256 (hex) over nested dicts, lists, tuples, strings, numbers, None and tensors.

    Tensors count with dtype and shape.
    """
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
        case _ if type(value) not in PLAIN:  # loading refuses a subclass, such as numpy's float64
            raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")
        case float():
            digest.update(b"f" + struct.pack("<d", value))
        case str():
            encoded = value.encode()
            digest.update(b"s%d:" % len(encoded) + encoded)
        case _:
            digest.update(repr(value).encode() + b";")


def save_step(folder: Path, step: int, content: Mapping[str, Any]) -> None:
    """Add a run's working checkpoint, and remove all but the newest NUM_KEPT.

    Checkpoints of later steps are all removed: the run resumed before them, so they were damaged.
    """
    newest = _step_path(folder, step)
    save(newest, "training", content)
    paths = _step_paths(folder)
    later = [path for path in paths if path > newest]
    for path in later + [path for path in paths if path <= newest][NUM_KEPT:]:
        path.unlink()


def latest_step(folder: Path, identity: str) -> dict[str, Any] | None:
    """Return the newest undamaged working checkpoint of a run, None if there is none.

    A damaged one is printed and skipped.

    Raises CheckpointError if it belongs to a run of another identity.
    """
    for path in _step_paths(folder):
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
    """Return the working checkpoint of a step."""
    return load(_step_path(folder, step), "training")[0]


def _step_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


def _step_paths(folder: Path) -> list[Path]:
    """Return the paths of a run's working checkpoints, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)
