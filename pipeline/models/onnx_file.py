"""ONNX files of `fcn export`, run by onnxruntime without torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.errors import CheckpointError
from pipeline.models.file_kind import ONNX, require_kind

OnnxNet = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # image (N, 3, H, W) -> score (N, C, H, W)
ERRORS_ONLY = 3  # onnxruntime's log level


def load(path: Path, num_threads: int = 0) -> tuple[OnnxNet, dict[str, Any]]:
    """Return the net of an ONNX file, and the file's "model" (arguments of FCN) and "classes" (names).

    num_threads: of one run; 0 for one a core.

    Raises CheckpointError if the file is missing, damaged, or was not written by `fcn export`.
    """
    if not path.exists():
        raise CheckpointError(f"{path} is missing; `fcn export MODEL {path}` writes it")
    require_kind(path, ONNX, expected="an ONNX file of `fcn export`")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = num_threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        about = {key: json.loads(metadata[key]) for key in ("model", "classes")}
    except KeyError as error:
        raise CheckpointError(f"{path} has no metadata {error}; write it with `fcn export`") from error
    except Exception as error:  # onnxruntime's own errors derive from Exception alone
        raise CheckpointError(f"{path} cannot be loaded as ONNX: {error}") from error
    return lambda image: np.asarray(session.run(["score"], {"image": image})[0], np.float32), about
