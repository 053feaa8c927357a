"""Weight files as .safetensors: readable by others, and as guarded against damage as .pt files are."""

import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from pipeline.errors import CheckpointError
from pipeline.models import checkpoint
from tests.tiny_model import write_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "net.safetensors"
    write_model(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_dtypes_shapes_and_order_are_kept(tmp_path, dtype):
    state = {"z": torch.ones(2, 3).to(dtype).t(), "a": torch.ones((), dtype=dtype), "m": torch.zeros(0, 3)}
    content = {"source": "a.pth", "state_dict": state, "more": [1, 1.0, None, True]}
    digest = checkpoint.save(tmp_path / "a.safetensors", "backbone", content)
    loaded, loaded_digest = checkpoint.load(tmp_path / "a.safetensors", "backbone")
    assert loaded_digest == digest == checkpoint.content_digest(content)
    assert list(loaded) == list(content)
    assert list(loaded["state_dict"]) == ["z", "a", "m"]
    with pytest.raises(CheckpointError, match="backbone file, expected a model"):
        checkpoint.load(tmp_path / "a.safetensors", "model")


def test_others_read_the_same_weights(saved):
    theirs, ours = load_file(saved), checkpoint.load(saved, "model")[0]["state_dict"]
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_no_flipped_bit_is_loaded_as_another_model(saved, tmp_path):
    data, digest = saved.read_bytes(), checkpoint.load(saved, "model")[1]
    (header,) = struct.unpack("<Q", data[:8])
    rng, path = random.Random(0), tmp_path / "flipped.safetensors"
    weights_at = 8 + header

    def loads_as(position: int) -> str | None:
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            return checkpoint.load(path, "model")[1]
        except CheckpointError as error:
            return None if str(path) in str(error) else "refused without a name"

    assert {loads_as(rng.randrange(weights_at)) for _ in range(150)} <= {None, digest}
    assert {loads_as(rng.randrange(weights_at, len(data))) for _ in range(50)} == {None}


def test_a_file_cut_anywhere_is_refused(saved, tmp_path):
    data, path = saved.read_bytes(), tmp_path / "cut.safetensors"
    for length in [*range(0, len(data), len(data) // 50), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            checkpoint.load(path, "model")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"format": "fcn/1", "kind": "model"},
        {"format": "fcn/1", "kind": "model", "keys": "[" * 100_000},
        {"format": "fcn/1", "kind": "model", "keys": "3"},
        {"format": "fcn/1", "kind": "model", "keys": '["state_dict"]', "state_dict": '["a"]'},
    ],
    ids=lambda metadata: str(metadata)[:60],
)
def test_a_file_of_another_program_is_refused(tmp_path, metadata):
    path = tmp_path / "theirs.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path, "model")


def test_a_header_larger_than_the_file_is_refused(tmp_path):
    path = tmp_path / "header.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path, "model")


def test_a_tensor_hidden_among_those_of_a_model_is_refused(saved, tmp_path):
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(saved) | {"hidden": torch.zeros(1)}, tmp_path / "more.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"more\.safetensors"):
        checkpoint.load(tmp_path / "more.safetensors", "model")
