"""Weight files: one schema, written whole or not at all, hashed, never unpickled.

torch.load's own checks accept most single-bit flips, so every file carries the sha256 of its content.
"""

import hashlib
import json
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.files import and_more, whole
from pipeline.models.file_kind import SAFETENSORS, TORCH, WRITE_WEIGHTS, require_kind

# float32 means float32: torch's default for cuDNN's convolutions is TF32, which rounds factors to 11 bits. It is set
# here because every program that runs a net with torch reads weights with this file
torch.backends.cudnn.allow_tf32 = False

FORMAT = "fcn/1"
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
        if path.suffix == ".safetensors":
            file.write(_to_safetensors(kind, digest, content))
        else:
            torch.save({"format": FORMAT, "kind": kind, "sha256": digest, "content": dict(content)}, file)
    return digest


def load(path: Path, kind: str) -> tuple[dict[str, Any], str]:
    """Return (content, its sha256) of a file that `save` wrote, tensors on the CPU.

    Raises CheckpointError if the file is missing, damaged, of another kind or of another program.
    """
    if not path.exists():
        raise CheckpointError(f"{path} is missing; `dvc repro` makes it")
    is_safetensors = require_kind(path, TORCH, SAFETENSORS, expected=f"a {kind} file") == SAFETENSORS
    file = _load_safetensors(path) if is_safetensors else _load_torch(path)
    if not isinstance(file, dict) or file.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has another format than {FORMAT!r}; this project did not write it. Published weights of an "
            "ImageNet classifier belong in a profile's backbone.weights"
        )
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
    """Return the object in a file of torch.save, or the tensors of a safetensors file, on the CPU.

    Raises CheckpointError if the file is damaged, of another program, or would run code when unpickled.
    """
    if require_kind(path, TORCH, SAFETENSORS, expected="weights for PyTorch") != SAFETENSORS:
        return _load_torch(path)
    with _opened_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict


def _load_torch(path: Path) -> Any:
    """Return the object in a file of torch.save. torch's messages, some of which advise to run code, stay here."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)  # about a protocol number that a flipped bit changed
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise nearly anything, AssertionError among it
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path} holds Python objects ({refused[1]}), not weights alone, and to load it would run its code; "
                f"{WRITE_WEIGHTS}"
            ) from error
        raise CheckpointError(
            f"{path} is damaged, or not a file of torch.save ({type(error).__name__}); fetch it again"
        ) from error


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
    with _opened_safetensors(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            return {}
        content = {key: json.loads(metadata[key]) for key in json.loads(metadata["keys"])}
        if sorted(content["state_dict"]) != sorted(file.keys()):
            raise ValueError("its list of layers differs from its tensors")
        content["state_dict"] = {name: file.get_tensor(name) for name in content["state_dict"]}
    return {key: metadata.get(key) for key in ("format", "kind", "sha256")} | {"content": content}


@contextmanager
def _opened_safetensors(path: Path) -> Iterator[Any]:
    """Open the file for the block; raise CheckpointError if it is damaged, or its metadata are."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path} is a damaged safetensors file: {error}; fetch it again") from error


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


def save_step(folder: Path, step: int, content: Mapping[str, Any], kept_step: int = 0) -> None:
    """Add a run's working checkpoint, and remove all but the newest NUM_KEPT and that of `kept_step`.

    Checkpoints of later steps are all removed: the run resumed before them, so they were damaged.
    """
    newest = _step_path(folder, step)
    save(newest, "training", content)
    paths = _step_paths(folder)
    later = [path for path in paths if path > newest]
    old = [path for path in paths if path <= newest][NUM_KEPT:]
    for path in later + [path for path in old if path != _step_path(folder, kept_step)]:
        path.unlink()


def remove_steps(folder: Path, after: int) -> int:
    """Remove a run's working checkpoints after a step; return the step of the newest that is left, 0 without one."""
    for path in _step_paths(folder):
        if path <= _step_path(folder, after):
            return int(path.stem.removeprefix("step-"))
        path.unlink()
    return 0


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
