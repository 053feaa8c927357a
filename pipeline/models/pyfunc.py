"""What MLflow loads a logged net by: it runs where this project is not installed, with the files logged beside the net.

`mlflow.pyfunc.load_model(uri).predict(image)` ends up here.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fcn.model import FCN
from pipeline.models.model_file import load_model


class Segmenter:
    """classes: names of the labels."""

    def __init__(self, model: FCN, classes: list[str], device: torch.device):
        self.model, self.classes, self.device = model, classes, device

    @torch.inference_mode()
    def predict(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """image: (H, W, 3) uint8 RGB, of any size -> (H, W) uint8, each pixel's best class."""
        channels_first = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return self.model(channels_first[None].to(self.device))[0].argmax(0).to("cpu", torch.uint8).numpy()


def _load_pyfunc(path: str) -> Segmenter:
    """The name is MLflow's. path: of a model file; it is on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, about, _ = load_model(Path(path), device)
    return Segmenter(model, about["classes"], device)
