"""Files that users give as weights and that are none: one sentence that says what the file is and what to do."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import CheckpointError
from pipeline.export.caffe import import_caffemodel
from pipeline.models import checkpoint, onnx_file
from pipeline.models.model_file import load_model
from tests.tiny_model import write_model

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"6" * 64 + b"\nsize 102979767\n"
DRIVE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"
S3 = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Denied</Message></Error>'


class OfTheirProject(nn.Linear):
    """A class that is not installed where the file is loaded."""


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zipped(*names: str) -> bytes:
    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, b"content")

    return written(write)


def tarred() -> bytes:
    def write(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("weights.pt"))

    return written(write)


NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
FILES: dict[str, tuple[bytes, str]] = {  # by name: the file, and words of the message
    "empty": (b"", "empty"),
    "lfs": (LFS, "git lfs pull"),
    "drive": (DRIVE, "Google Drive - Quota exceeded"),
    "s3": (S3, "AccessDenied"),
    "json": (b'{"error": "Repository not found"}', "Repository not found"),
    "json of bytes like safetensors": (b'{"err": {"message": "no such file"}}', "no such file"),
    "text": ("\ufeffsee the README, § 3\n".encode(), "see the README"),
    "gzip": (gzip.compress(b"weights"), "gzip"),
    "tar": (tarred(), "tar archive"),
    "zip": (zipped("model/weights.pt", "README.md"), "zip archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(50), "7z archive"),
    "npz": (written(lambda file: np.savez(file, weight=np.zeros(3))), "numpy"),
    "npy": (written(lambda file: np.save(file, np.zeros(3))), "numpy"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "Keras"),
    "keras": (zipped("metadata.json", "config.json", "model.weights.h5"), "Keras"),
    "photo": (written(lambda file: Image.new("RGB", (4, 4)).save(file, "JPEG")), "photo"),
    "whole model": (written(lambda file: torch.save(OfTheirProject(1, 1), file)), "model.state_dict()"),
    "whole model, old format": (
        written(lambda file: torch.save(NET, file, _use_new_zipfile_serialization=False)),
        "torch.nn.modules.container.Sequential",
    ),
    "pickle": (pickle.dumps({"weights": np.zeros(3)}), "model.state_dict()"),
    "torchscript": (
        written(lambda file: torch.jit.save(torch.jit.trace(NET, torch.zeros(1, 3, 8, 8)), file)),
        "TorchScript",
    ),
    "cut off": (written(lambda file: torch.save(NET.state_dict(), file))[:-300], "fetch it again"),
    "noise": (bytes(range(256)) * 8, "fetch it again"),
}
LOADERS: dict[str, Callable[[Path], object]] = {
    "model": lambda path: load_model(path, torch.device("cpu")),
    "weights": checkpoint.load_weights,
    "onnx": onnx_file.load,
    "caffemodel": lambda path: import_caffemodel(path, path.with_name("dest.pt")),
}
NEVER = ("weights_only", "unpickl", "arbitrary code", "\x1b", "torch.load", "\n")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_holds_no_weights_is_refused_with_what_it_is_and_what_to_do(tmp_path, name):
    content, words = FILES[name]
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    for loader in ("model", "weights"):
        with pytest.raises(CheckpointError) as caught:
            LOADERS[loader](path)
        assert str(path) in str(caught.value)
        assert words in str(caught.value)
        assert not any(word in str(caught.value) for word in NEVER), caught.value


@pytest.mark.parametrize("loader", ["onnx", "caffemodel"])
@pytest.mark.parametrize("name", ["empty", "lfs", "drive", "s3", "gzip", "tar", "zip", "hdf5"])
def test_so_are_files_in_place_of_onnx_and_caffes(tmp_path, loader, name):
    content, words = FILES[name]
    path = tmp_path / f"net.{loader}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)) as caught:
        LOADERS[loader](path)
    assert words in str(caught.value)
    assert not any(word in str(caught.value) for word in NEVER)
    assert not path.with_name("dest.pt").exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_folder_is_refused_as_one(tmp_path, loader):
    (tmp_path / "weights.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"weights\.pt is a folder"):
        LOADERS[loader](tmp_path / "weights.pt")


def test_the_name_does_not_decide_between_torchs_files_and_safetensors(tmp_path):
    write_model(tmp_path / "net.safetensors")
    write_model(tmp_path / "net.pt")
    (tmp_path / "net.safetensors").rename(tmp_path / "was-safetensors.pt")
    (tmp_path / "net.pt").rename(tmp_path / "was-torch.safetensors")
    digests = {load_model(path, torch.device("cpu"))[2] for path in tmp_path.iterdir()}
    assert len(digests) == 1


def test_published_weights_are_read_from_safetensors_of_any_name(tmp_path):
    state = {name: tensor.clone() for name, tensor in NET.state_dict().items()}
    save_file(state, tmp_path / "weights.bin")
    loaded = checkpoint.load_weights(tmp_path / "weights.bin")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_an_onnx_file_under_another_name_and_the_reverse_are_refused_with_the_name_to_give(tmp_path):
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    (tmp_path / "net.pt").write_bytes(
        onnx.helper.make_model(graph, producer_name="theirs").SerializeToString()
    )
    with pytest.raises(CheckpointError, match=r"ONNX.*\.onnx"):
        LOADERS["model"](tmp_path / "net.pt")
    write_model(tmp_path / "model.pt")
    (tmp_path / "model.pt").rename(tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match=r"torch.*\.pt"):
        onnx_file.load(tmp_path / "net.onnx")


def test_a_program_of_torch_export_is_named(tmp_path):
    program = torch.export.export(NET.eval(), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(CheckpointError, match=r"torch\.export"):
        LOADERS["model"](tmp_path / "net.pt2")


def test_json_inside_a_state_is_no_text(tmp_path):
    """A file that begins with control characters is read by its loader, whatever text follows."""
    state = {"note": json.dumps({"error": "none"})}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert checkpoint.load_weights(tmp_path / "a.pt") == state
