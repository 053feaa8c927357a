"""ONNX files as `fcn export` writes them, run by onnxruntime. Needs no torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.errors import CheckpointError

Score = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def load(path: Path, num_threads: int = 0) -> tuple[Score, dict[str, Any]]:
    """(image (N, 3, H, W) uint8 -> score (N, C, H, W) float32, what the file says of "model" and "classes").

    num_threads: 0 for one a core.   CheckpointError if it is missing, damaged, or not of `fcn export`.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; `fcn export MODEL {path} --format onnx` makes it")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = num_threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        said = session.get_modelmeta().custom_metadata_map
        about = {key: json.loads(said[key]) for key in ("model", "classes")}
    except KeyError as error:
        raise CheckpointError(f"{path} does not say its {error}; write it with `fcn export`") from error
    except Exception as error:  # its own errors derive from Exception alone
        raise CheckpointError(f"{path} cannot be loaded as ONNX: {error}") from error
    return lambda image: np.asarray(session.run(["score"], {"image": image})[0], np.float32), about
