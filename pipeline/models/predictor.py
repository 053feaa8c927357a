"""Predictor: a net in memory or in a file, and the label maps it gives.

torch is imported where it is used, because an ONNX file runs without it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CheckpointError
from pipeline.models.tiles import SIDE, Overlap, Span, Tile, overlap, tiles_of

if TYPE_CHECKING:
    import torch

    from fcn.averaging import Averaging

MAX_CLASSES = 255  # a uint8 label map has one more value, for void


class Part(NamedTuple):
    """The result for one part of a photo.

    region: (rows, columns) of the photo, as slices.
    label: (h, w) uint8, each pixel's best class.
    score: (C, h, w) float32 that `label` is the argmax of; None unless it was asked for.
    """

    region: tuple[slice, slice]
    label: NDArray[np.uint8]
    score: NDArray[np.float32] | None


@dataclass(frozen=True)
class Predictor:
    """One net for evaluation, validation, `fcn predict`, `fcn serve` and MLflow.

    net: an FCN in evaluation mode, or an ONNX file's net.
    classes: names of the C classes.
    device: the FCN's device; None for an ONNX net.
    averaging: scales and mirror images whose probabilities are averaged; None runs each image once, as the paper does.
    options: arguments of FCN.
    name: of the model file, for messages.
    """

    net: Any  # FCN, of tensors, or OnnxNet, of arrays
    classes: Sequence[str]
    device: "torch.device | None"
    averaging: "Averaging | None" = None
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = "the net"

    @classmethod
    def load(cls, path: Path) -> "Predictor":
        """Load a model file.

        path: an .onnx file of `fcn export`, run by onnxruntime on the CPU; or any other model file, run by torch, on
            a GPU if there is one.

        Raises CheckpointError if the file is missing, damaged, or has more classes than a label map has values.
        """
        if path.suffix == ".onnx":
            from pipeline.models import onnx_file

            device, (net, about) = None, onnx_file.load(path)
        else:
            import torch

            from pipeline.models.model_file import load_model

            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            net, about, _ = load_model(path, device)
        classes = about["classes"]
        if len(classes) > MAX_CLASSES:
            raise CheckpointError(
                f"{path} has {len(classes)} classes; a label map holds at most {MAX_CLASSES}"
            )
        return cls(net, classes, device, options=about["model"], name=path.name)

    def predict(self, image: "torch.Tensor") -> "torch.Tensor":
        """Return each pixel's best class, (N, H, W) int64, on the net's device.

        image: (N, 3, H, W) uint8 RGB, on any device.
        """
        import torch

        from fcn.metrics import best_class

        with torch.inference_mode():
            return best_class(self.score(image))

    def probability(self, image: "torch.Tensor") -> "torch.Tensor":
        """Return each class's probability, (N, C, H, W) float32 in 0..1, on the net's device.

        image: (N, 3, H, W) uint8 RGB, on any device.
        """
        import torch

        from fcn.averaging import Averaging, average_probability

        with torch.inference_mode():
            return average_probability(self.net, image.to(self.device), self.averaging or Averaging())

    def label_map(self, photo: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
        """Return each pixel's best class, (H, W) uint8; see `parts`."""
        label = np.empty(photo.shape[:2], np.uint8)
        for part in self.parts(photo, side):
            label[part.region] = part.label
        return label

    def parts(
        self, photo: NDArray[np.uint8], side: int = SIDE, *, with_score: bool = False
    ) -> Iterator[Part]:
        """Yield the results for the parts of a photo, each pixel once.

        photo: (H, W, 3) uint8 RGB.
        side: pixels. A photo of at most side x side is one part. A larger one is run in overlapping tiles of at most
            this side; their scores are those of the whole photo but for the order of float32 sums.

        Raises CheckpointError if a score is NaN or infinite.
        """
        height, width = photo.shape[:2]
        if height * width <= side**2:
            tiles = [Tile(Span(0, height, 0, height), Span(0, width, 0, width))]
        else:
            tiles = tiles_of(height, width, side, self._overlap())
        for rows, columns in tiles:
            crop = photo[rows.first : rows.last, columns.first : columns.last]
            label, score = self._run(crop.transpose(2, 0, 1)[None].copy(), with_score)
            region = slice(rows.start, rows.end), slice(columns.start, columns.end)
            used = rows.used, columns.used
            yield Part(region, label[used], None if score is None else score[:, *used])

    def _run(
        self, image: NDArray[np.uint8], with_score: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Return label (h, w) and score (C, h, w) of an image (1, 3, h, w)."""
        if self.device is None:
            score = self.net(image)
            self._check(np.isfinite(score).all())
            return score[0].argmax(0).astype(np.uint8), score[0]
        import torch

        from fcn.metrics import best_class

        with torch.inference_mode():
            score = self.score(torch.from_numpy(image))
            self._check(score.isfinite().all())
            label = best_class(score)[0].to("cpu", torch.uint8).numpy()
            return label, score[0].cpu().numpy() if with_score else None

    def score(self, image: "torch.Tensor") -> "torch.Tensor":
        """Return what a pixel's best class is the argmax of, (N, C, H, W) float32, on the net's device.

        These are logits, or with averaging probabilities. Gradients are recorded unless the caller turns them off.

        image: (N, 3, H, W) uint8 RGB, on any device.
        """
        if self.averaging is None or self.averaging.is_none:
            return self.net(image.to(self.device))
        return self.probability(image)

    def _check(self, is_finite: object) -> None:
        if not is_finite:
            raise CheckpointError(f"{self.name}: scores are NaN or infinite; the weights are damaged")

    def _overlap(self) -> Overlap:
        """Return the overlap of tiles. For an ONNX net it is that of an FCN of its options, without weights."""
        if self.device is not None:
            return overlap(self.net)
        import torch

        from fcn.model import FCN

        with torch.device("meta"):
            return overlap(FCN(**self.options))
