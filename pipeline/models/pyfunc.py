"""MLflow's loader of a logged net: `mlflow.pyfunc.load_model(uri).predict(image)`.

It runs where this project is not installed, with the files logged beside the net.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.models.predictor import Predictor


class Segmenter:
    """A Predictor with the method that MLflow calls."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor

    def predict(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return each pixel's best class, (H, W) uint8.

        image: (H, W, 3) uint8 RGB, of any size.
        """
        return self.predictor.label_map(image)


def _load_pyfunc(path: str) -> Segmenter:
    """Load a model file, onto a GPU if there is one. The name is MLflow's."""
    return Segmenter(Predictor.load(Path(path)))
