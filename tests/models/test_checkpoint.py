import copy
import math
import os
import pickle
import random
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import CheckpointError, UserError
from pipeline.models import checkpoint
from pipeline.models.checkpoint import (
    content_digest,
    latest_step,
    load,
    load_step,
    remove_steps,
    save,
    save_step,
)


def training_state() -> dict:
    """What a run saves: nested, with ordered dicts, integer keys, None and lists."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return {"identity": "a", "step": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict()}


def canonical(value: object) -> object:
    """The content as plain values that are equal only if every bit, type and shape is; another route than sha256."""
    match value:
        case dict():
            return ("dict", [(canonical(key), canonical(item)) for key, item in value.items()])
        case list() | tuple():
            return ("list", [canonical(item) for item in value])
        case torch.Tensor():
            raw = value.contiguous().flatten().view(torch.uint8).tolist()
            return ("tensor", str(value.dtype), list(value.shape), raw)
        case float():
            return ("float", struct.pack("<d", value))
        case _:
            return (type(value).__name__, value)


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 5)))
    return torch.randint(0, 3, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))


plain = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(width=64) | st.text(max_size=3)
contents = st.recursive(
    plain | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.integers(0, 30), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(contents, contents)
def test_two_contents_have_one_sha256_exactly_if_they_are_equal(one, other):
    assert content_digest(one) == content_digest(copy.deepcopy(one))
    assert (content_digest(one) == content_digest(other)) == (canonical(one) == canonical(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        (None, "None"),
        ("1", 1),
        ([1, 2], [12]),
        ([[1], 2], [1, [2]]),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, ["a", 1]),
        ({}, []),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(4, dtype=torch.float16), torch.zeros(4, dtype=torch.bfloat16)),
        (torch.zeros(1), torch.zeros(())),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        # The length of a list, written without an end, could run into its first number
        (["x", [23], *[0] * 11, [3, *[0] * 11]], ["x", [3, *[0] * 11], [23], *[0] * 11]),
    ],
)
def test_contents_that_look_alike_have_different_sha256(one, other):
    assert content_digest({"value": one}) != content_digest({"value": other})


def test_a_net_in_float32_runs_without_tf32_on_a_gpu():
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_any_bit_of_any_weight_changes_the_sha256():
    content = training_state()
    digest = content_digest(content)
    for tensor in content["model"].values():
        raw = tensor.view(-1).view(torch.uint8)
        for i in range(len(raw)):
            raw[i] ^= 1
            assert content_digest(content) != digest
            raw[i] ^= 1
    assert content_digest(content) == digest


def test_how_a_tensor_lies_in_memory_does_not_matter():
    tensor = torch.arange(6.0).view(2, 3)
    turned = tensor.t().contiguous().t()
    assert turned.stride() != tensor.stride()
    assert content_digest(turned) == content_digest(tensor.clone().requires_grad_())


@settings(max_examples=50, deadline=None)
@given(content=st.dictionaries(st.text(max_size=3), contents, max_size=4))
def test_what_is_saved_comes_back_the_same(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "round-trip" / "file.pt"
    digest = save(path, "model", content)
    found, same = load(path, "model")
    assert canonical(found) == canonical(content)
    assert digest == same == content_digest(content)


def test_a_runs_state_comes_back_and_goes_into_model_and_optimizer(tmp_path):
    content = training_state()
    save(tmp_path / "a.pt", "training", content)
    found, _ = load(tmp_path / "a.pt", "training")
    assert canonical(dict(found["model"])) == canonical(dict(content["model"]))
    assert canonical(found["optimizer"]) == canonical(content["optimizer"])
    assert isinstance(found["model"], OrderedDict)


@pytest.mark.parametrize("value", [np.float64(1), np.int64(1), {1, 2}, b"bytes", 1j, Path("a"), nn.ReLU()])
def test_a_value_that_could_not_be_loaded_is_not_saved(tmp_path, value):
    with pytest.raises(TypeError, match=type(value).__name__):
        save(tmp_path / "a.pt", "model", {"nested": [value]})
    assert not (tmp_path / "a.pt").exists()


# Damage


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "step.pt"
    save(path, "training", training_state())
    return path


def loads_as(path: Path, data: bytes) -> str | None:
    """The sha256 of what a file of these bytes loads as, None if it is refused by name."""
    path.write_bytes(data)
    try:
        content, digest = load(path, "training")
    except CheckpointError as error:
        return None if str(path) in str(error) else "refused without a name"
    assert content_digest(content) == digest
    return digest


def test_no_flipped_bit_is_loaded_as_other_content(saved, tmp_path):
    data, digest = saved.read_bytes(), load(saved, "training")[1]
    rng = random.Random(0)
    pickled = range(
        data.index(b"PK"), data.index(b".format_version")
    )  # where a flip can make torch do anything
    places = [rng.randrange(len(data)) for _ in range(300)] + [rng.choice(pickled) for _ in range(300)]
    found = []
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        found.append(loads_as(tmp_path / "flipped.pt", bytes(damaged)))
    assert set(found) == {
        None,
        digest,
    }  # the same content only where a bit means nothing, as in a zip's padding
    assert found.count(None) > 300


def test_every_bit_of_the_weights_themselves_is_guarded(saved, tmp_path):
    data, digest = saved.read_bytes(), load(saved, "training")[1]
    weight = training_state()["model"]["0.weight"].numpy().tobytes()
    start = data.index(weight)
    for place in range(start, start + len(weight)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        assert loads_as(tmp_path / "flipped.pt", bytes(damaged)) is None
    assert loads_as(tmp_path / "whole.pt", data) == digest


def test_a_file_cut_anywhere_is_refused(saved, tmp_path):
    data = saved.read_bytes()
    for length in [*range(0, len(data), 41), len(data) - 1]:
        assert loads_as(tmp_path / "cut.pt", data[:length]) is None


class Hostile:
    def __init__(self, touched: Path):
        self.touched = touched

    def __reduce__(self):
        return os.mkdir, (str(self.touched),)


@pytest.mark.parametrize("how", ["torch", "torch, legacy", "pickle"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, how):
    path, touched = tmp_path / "a.pt", tmp_path / "touched"
    file = {"format": checkpoint.FORMAT, "kind": "model", "sha256": "", "content": Hostile(touched)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(file))
    else:
        torch.save(file, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(CheckpointError, match=r"a\.pt .*model\.state_dict"):
        load(path, "model")
    assert not touched.exists()
    pickle.loads(pickle.dumps(file))
    assert touched.exists()  # it would have


def test_a_file_of_another_kind_format_or_none_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(CheckpointError, match=r"a\.pt is missing"):
        load(path, "model")
    save(path, "backbone", {})
    with pytest.raises(CheckpointError, match=r"a\.pt is a backbone file, expected a model file"):
        load(path, "model")
    for foreign in ({"conv1_1.weight": torch.zeros(1)}, [1, 2], {"format": "fcn/0"}, torch.zeros(2)):
        torch.save(foreign, path)
        with pytest.raises(CheckpointError, match=r"a\.pt .*'fcn/1'"):
            load(path, "model")


def test_a_sha256_that_was_changed_is_named_beside_the_one_found(tmp_path):
    path = tmp_path / "a.pt"
    digest = save(path, "model", {"a": 1})
    torch.save({"format": checkpoint.FORMAT, "kind": "model", "sha256": "0" * 64, "content": {"a": 1}}, path)
    with pytest.raises(CheckpointError, match=f"a.pt is damaged.*{digest}.*0000"):
        load(path, "model")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_file_that_was_there(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.pt"
    save(path, "model", {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "fsync" else Path, failing, full)
        with pytest.raises(UserError, match=r"a\.pt .*No space"):
            save(path, "model", {"a": 2})
    assert load(path, "model")[0] == {"a": 1}
    save(path, "model", {"a": 3})
    assert load(path, "model")[0] == {"a": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


# Working checkpoints of a run


def state(step: int, identity: str = "run") -> dict:
    return {"identity": identity, "step": step}


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_three_checkpoints_are_kept(tmp_path):
    assert latest_step(tmp_path / "none", "run") is None
    for step in (5, 50, 100, 500, 1000):
        save_step(tmp_path, step, state(step))
    assert steps(tmp_path) == ["step-00000100.pt", "step-00000500.pt", "step-00001000.pt"]
    assert latest_step(tmp_path, "run") == state(1000)
    assert load_step(tmp_path, 500) == state(500)


def test_one_checkpoint_can_stay_when_newer_ones_are_written(tmp_path):
    for step in range(1, 8):
        save_step(tmp_path, step, state(step), kept_step=2)
    assert steps(tmp_path) == [f"step-0000000{step}.pt" for step in (2, 5, 6, 7)]


@pytest.mark.parametrize(("after", "newest", "left"), [(6, 6, 2), (5, 5, 1), (4, 0, 0), (9, 7, 3)])
def test_later_checkpoints_are_removed_and_the_newest_left_is_told(tmp_path, after, newest, left):
    for step in (5, 6, 7):
        save_step(tmp_path, step, state(step))
    assert remove_steps(tmp_path, after) == newest
    assert len(steps(tmp_path)) == left


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, capsys):
    for step in (1, 2, 3):
        save_step(tmp_path, step, state(step))
    for name, keep in (("step-00000003.pt", 0), ("step-00000002.pt", 500)):
        damaged = tmp_path / name
        damaged.write_bytes(damaged.read_bytes()[:keep])
    assert latest_step(tmp_path, "run") == state(1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        str(tmp_path / f"step-0000000{step}.pt") for step in (3, 2)
    ]
    assert all("falling back to the checkpoint before it" in line for line in lines)


def test_if_every_checkpoint_is_damaged_the_run_starts_from_the_beginning(tmp_path):
    save_step(tmp_path, 1, state(1))
    (tmp_path / "step-00000001.pt").write_bytes(b"")
    assert latest_step(tmp_path, "run") is None


def test_damaged_checkpoints_that_were_passed_over_take_no_good_ones_place(tmp_path):
    for step in (10, 20, 30):
        save_step(tmp_path, step, state(step))
    for name in ("step-00000020.pt", "step-00000030.pt"):
        (tmp_path / name).write_bytes(b"damaged")
    found = latest_step(tmp_path, "run")
    assert found == state(10)
    save_step(tmp_path, 15, state(15))  # the run that went on from 10
    assert steps(tmp_path) == ["step-00000010.pt", "step-00000015.pt"]


def test_a_checkpoint_of_another_configuration_is_refused_naming_both(tmp_path):
    save_step(tmp_path, 1, state(1, "fcn32s-aaa"))
    with pytest.raises(
        CheckpointError, match=r"step-00000001\.pt belongs to run fcn32s-aaa, this is fcn32s-bbb"
    ):
        latest_step(tmp_path, "fcn32s-bbb")


def test_a_file_half_written_is_no_checkpoint(tmp_path):
    save_step(tmp_path, 1, state(1))
    (tmp_path / ".step-00000002.pt.partial").write_bytes(b"half")
    assert latest_step(tmp_path, "run") == state(1)


def test_nan_keeps_its_bits(tmp_path):
    save(tmp_path / "a.pt", "model", {"loss": math.nan, "weight": torch.tensor([math.nan])})
    assert math.isnan(load(tmp_path / "a.pt", "model")[0]["loss"])
