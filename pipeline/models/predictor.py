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
from pipeline.models.tiles import SIDE, Overlap, Region, Span, Tile, overlap, tiles_of

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

    region: Region
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

        label = torch.empty((len(image), *image.shape[-2:]), dtype=torch.int64, device=self.device)
        with torch.inference_mode():
            for region, score in self.scores(image):
                label[:, *region] = best_class(score)
        return label

    def confidence(self, image: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Return the probability of each pixel's best class, (N, H, W) float32 in 0..1, and that class, int64.

        image: (N, 3, H, W) uint8 RGB, on any device.
        """
        import torch

        shape = (len(image), *image.shape[-2:])
        confidence = torch.empty(shape, device=self.device)
        label = torch.empty(shape, dtype=torch.int64, device=self.device)
        with torch.inference_mode():
            for region, score in self.scores(image):
                probability = score if self._averages else score.softmax(1)
                confidence[:, *region], label[:, *region] = probability.max(1)
        return confidence, label

    def probability(self, image: "torch.Tensor") -> "torch.Tensor":
        """Return each class's probability, (N, C, H, W) float32 in 0..1, on the net's device.

        image: (N, 3, H, W) uint8 RGB, on any device.
        """
        import torch

        from fcn.averaging import Averaging, average_probability

        with torch.inference_mode():
            return average_probability(self._joined, image.to(self.device), self.averaging or Averaging())

    def scores(
        self, image: "torch.Tensor", side: int | None = None
    ) -> "Iterator[tuple[Region, torch.Tensor]]":
        """Yield the parts of images and what a pixel's best class is the argmax of there, each pixel once.

        These are logits, or with averaging probabilities, (N, C, h, w) float32 on the net's device. Gradients are
        recorded unless the caller turns them off.

        image: (N, 3, H, W) uint8 RGB, on any device.
        side: of the tiles of large images; see `parts`. Averaged probabilities are one part, because the passes meet
            at other pixels; each pass is run in tiles.
        """
        if self._averages:
            yield (slice(None), slice(None)), self.probability(image)
            return
        for tile in self._tiles(image.shape[-2:], side):
            yield tile.region, self.net(image[..., *tile.crop].to(self.device))[..., *tile.used]

    def _joined(self, image: "torch.Tensor") -> "torch.Tensor":
        """Return the net's logits of images on its device, (N, C, H, W) float32."""
        import torch

        score = torch.empty((len(image), len(self.classes), *image.shape[-2:]), device=self.device)
        for tile in self._tiles(image.shape[-2:]):
            score[..., *tile.region] = self.net(image[..., *tile.crop])[..., *tile.used]
        return score

    @property
    def _averages(self) -> bool:
        return self.averaging is not None and not self.averaging.is_none

    def label_map(self, photo: NDArray[np.uint8], side: int | None = None) -> NDArray[np.uint8]:
        """Return each pixel's best class, (H, W) uint8; see `parts`."""
        label = np.empty(photo.shape[:2], np.uint8)
        for part in self.parts(photo, side):
            label[part.region] = part.label
        return label

    def parts(
        self, photo: NDArray[np.uint8], side: int | None = None, *, with_score: bool = False
    ) -> Iterator[Part]:
        """Yield the results for the parts of a photo, each pixel once.

        photo: (H, W, 3) uint8 RGB.
        side: pixels; by default the net's Overlap.default_side. A photo of at most side x side is one part. A larger
            one is run in overlapping tiles of at most this side; their scores are those of the whole photo but for
            the order of float32 sums.

        Raises CheckpointError if a score is NaN or infinite.
        """
        for tile in self._tiles(photo.shape[:2], side):
            label, score = self._run(photo[tile.crop].transpose(2, 0, 1)[None].copy(), with_score)
            yield Part(tile.region, label[tile.used], None if score is None else score[:, *tile.used])

    def require_side(self, side: int) -> None:
        """Raise UserError if tiles of `side` pixels would consist of overlap only."""
        self._overlap().require(side)

    def _tiles(self, size: Sequence[int], side: int | None = None) -> Iterator[Tile]:
        """Yield the whole image as one tile, or the tiles of one that has more than side x side pixels.

        size: (height, width) of the image.
        """
        height, width = size
        if height * width > (side or SIDE) ** 2:
            needed = self._overlap()
            side = side or needed.default_side
            if height * width > side**2:
                yield from tiles_of(height, width, side, needed)
                return
        yield Tile(Span(0, height, 0, height), Span(0, width, 0, width))

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
            pixels = torch.from_numpy(image).to(self.device)
            score = self.probability(pixels) if self._averages else self.net(pixels)
            self._check(score.isfinite().all())
            label = best_class(score)[0].to("cpu", torch.uint8).numpy()
            return label, score[0].cpu().numpy() if with_score else None

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
