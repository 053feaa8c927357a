"""The four scores of the paper (reference score.py) and F1, from one confusion matrix over all pixels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fcn import IGNORE_LABEL
from fcn.scores import mean_f1, mean_iu, pixel_acc

# How mean IU counts a class without labelled pixels; the mean IU of other projects differs only in this
CONVENTIONS = {
    "reference": "skipped, unless it is predicted: then it counts 0 (score.py, pytorch-fcn, mmsegmentation)",
    "ground_truth": "skipped, even if it is predicted (detectron2, deeplab-pytorch)",
    "absent_is_1": "counts 1, unless it is predicted: then 0 (PaddleSeg)",
    "absent_is_0": "counts 0 (Composer)",
    "plain_mean": "makes the mean nan, unless it is predicted: then it counts 0 (torchvision's references)",
}


@dataclass(frozen=True)
class Scores:
    """The paper's scores, F1 and precision, each in 0..1; nan where there are no pixels to score.

    pixel_acc: share of valid pixels that are right.
    mean_acc: mean recall, over the classes in the label.
    mean_iu: mean intersection over union, by default of the classes in label or prediction; see CONVENTIONS.
    fw_iu: IU weighted by the frequency of a class.
    mean_f1: mean F1, over the classes in label or prediction.
    mean_precision: mean precision, over the classes in the prediction.
    class_iu: IU of each class, in class order.
    class_f1: F1 of each class, the harmonic mean of precision and recall: its Dice coefficient, 2 IU / (1 + IU).
    class_precision: share of the pixels predicted as a class that are of it.
    class_recall: share of a class's pixels that are right.
    """

    pixel_acc: float
    mean_acc: float
    mean_iu: float
    fw_iu: float
    mean_f1: float
    mean_precision: float
    class_iu: tuple[float, ...]
    class_f1: tuple[float, ...]
    class_precision: tuple[float, ...]
    class_recall: tuple[float, ...]


class ConfusionMatrix:
    """Exact counts of pixels by (label, prediction), kept on a device. Counting never synchronises the device.

    num_classes: the number of classes C.
    device: where the counts are kept; predictions and labels must be there, too.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.num_classes = num_classes
        # Rows are labels -1..256, columns predictions -1..num_classes. A value that is not a class falls into a row or
        # column of its own: counting has nothing to select, which would synchronise the device
        self._counts = torch.zeros(IGNORE_LABEL + 3, num_classes + 2, dtype=torch.int64, device=device)

    @property
    def hist(self) -> Tensor:
        """Return the counts hist[label, prediction], (C, C) int64.

        Raises ValueError if a prediction was not a class, or a label neither a class nor IGNORE_LABEL.
        """
        classes = self._classes
        if num_unknown := int(self._counts.sum() - self._counts[1 + IGNORE_LABEL].sum() - classes.sum()):
            raise ValueError(
                f"{num_unknown} pixels have a label that is neither 0..{self.num_classes - 1} nor {IGNORE_LABEL}, "
                f"or a prediction that is not 0..{self.num_classes - 1}"
            )
        return classes

    @property
    def _classes(self) -> Tensor:
        """The part of the counts in which label and prediction are classes, a view."""
        return self._counts[1 : 1 + self.num_classes, 1:-1]

    def update(self, prediction: Tensor, label: Tensor) -> "ConfusionMatrix":
        """Count the pixels of one image or batch.

        prediction: integer tensor of any shape, 0..C-1.
        label: integer tensor of the same shape, 0..C-1 or IGNORE_LABEL, which is not scored.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)} but label is {tuple(label.shape)}")
        row = _clamped(label, IGNORE_LABEL + 1)
        column = _clamped(prediction, self.num_classes)
        width = self._counts.shape[1]
        bins = row.mul_(width).add_(column).add_(width + 1)  # row and column begin at -1
        self._counts += _histogram(bins, self._counts.numel()).view_as(self._counts)
        return self

    def merge(self, hist: Tensor) -> "ConfusionMatrix":
        """Add the hist of another matrix, (C, C), such as another worker's."""
        self._classes.add_(hist.to(self._counts))
        return self

    def add(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Add all counts of another matrix of the same classes and device, without synchronising the device."""
        self._counts += other._counts
        return self

    def per_class(self) -> Tensor:
        """Return (3, C) int64, per class: true positives, labelled pixels, predicted pixels.

        The result is on the device, which is not synchronised. Values that are not classes are left out; `hist` raises
        ValueError for them.
        """
        classes = self._classes
        return torch.stack((classes.diagonal(), classes.sum(1), classes.sum(0)))

    def scores(self, convention: str = "reference") -> Scores:
        """Return the scores of all pixels counted so far; convention: a key of CONVENTIONS."""
        num_pixels = int(self.hist.sum())
        counts = self.per_class().cpu().double()
        right, truth, predicted = counts
        class_iu = right / (truth + predicted - right)  # 0 / 0 = nan: in neither label nor prediction
        recall, precision = right / truth, right / predicted
        frequency = truth / truth.sum()
        match convention:
            case "reference":
                mean = mean_iu(counts)
            case "ground_truth":
                mean = class_iu[truth > 0].mean()
            case "absent_is_1":
                mean = class_iu.nan_to_num(1.0).mean()
            case "absent_is_0":
                mean = class_iu.nan_to_num(0.0).mean()
            case "plain_mean":
                mean = class_iu.mean()
            case _:
                raise ValueError(f"unknown convention {convention!r}; known: {', '.join(CONVENTIONS)}")
        return Scores(
            pixel_acc=float(pixel_acc(counts)),
            mean_acc=float(recall.nanmean()),
            mean_iu=float(mean),
            fw_iu=float((frequency * class_iu)[frequency > 0].sum()) if num_pixels else float("nan"),
            mean_f1=float(mean_f1(counts)),
            mean_precision=float(precision.nanmean()),
            class_iu=tuple(class_iu.tolist()),
            class_f1=tuple((2 * right / (truth + predicted)).tolist()),
            class_precision=tuple(precision.tolist()),
            class_recall=tuple(recall.tolist()),
        )


def best_class(score: Tensor) -> Tensor:
    """Return the class of the highest score of each pixel, (N, H, W) int64; of equal scores the first class.

    The result is that of score.argmax(1). On a CPU this is about ten times as fast: it reads memory in order, where
    argmax jumps from class to class.

    score: (N, C, H, W) float, without nan.
    """
    if score.is_cuda:
        return score.argmax(1)
    highest = score[:, 0].clone()
    best = torch.zeros(highest.shape, dtype=torch.uint8 if score.shape[1] <= 256 else torch.int32)
    for c in range(1, score.shape[1]):
        is_higher = score[:, c] > highest
        torch.maximum(best, is_higher.to(best.dtype) * c, out=best)
        torch.maximum(highest, score[:, c], out=highest)
    return best.long()


def trimap(label: Tensor, radius: int) -> Tensor:
    """Return `label` with all but a band around objects' borders set to IGNORE_LABEL, to score borders alone.

    The band holds the valid pixels that have a void pixel, or a pixel of another class, at most `radius` rows and
    columns away.
    DeepLab and Kraehenbuehl & Koltun plot mean IU against its width.

    label: (N, H, W) integer.
    radius: pixels, at least 1.
    """
    if radius < 1:
        raise ValueError(f"radius must be at least 1 pixel, got {radius}")
    # The outermost pixels are repeated beyond the image, which adds no new value to a window
    rows, columns = (
        torch.arange(-radius, side + radius, device=label.device).clamp(0, side - 1)
        for side in label.shape[1:]
    )
    around = label[:, rows][:, :, columns]
    highest, lowest = (
        _over_windows(pick, _over_windows(pick, around, 2 * radius + 1, 1), 2 * radius + 1, 2)
        for pick in (torch.maximum, torch.minimum)
    )
    return torch.where(highest != lowest, label, IGNORE_LABEL)


def _over_windows(pick: Callable[[Tensor, Tensor], Tensor], values: Tensor, window: int, dim: int) -> Tensor:
    """Return the `pick` (maximum, minimum) of every window of adjacent values along dim.

    The side along dim shrinks by window - 1. Windows of 1, 2, 4, ... are combined, the last two overlapping: 30 times
    as fast as max_pool2d on a CPU.
    """

    def combined(distance: int) -> Tensor:
        num = values.shape[dim] - distance
        return pick(values.narrow(dim, 0, num), values.narrow(dim, distance, num))

    width = 1
    while 2 * width <= window:
        values = combined(width)
        width *= 2
    return combined(window - width)


def _clamped(values: Tensor, maximum: int) -> Tensor:
    """Return the values clamped to -1..maximum, (N,) int32, in new memory."""
    values = values.flatten()
    if values.dtype == torch.int64:  # clamped before it is narrowed, or 2 ** 32 would be 0
        return values.clamp(-1, maximum).int()
    return values.to(torch.int32, copy=True).clamp_(-1, maximum)


def _histogram(values: Tensor, num_bins: int) -> Tensor:
    """Return the counts of values 0..num_bins-1, int64."""
    if values.is_cuda:
        # bincount synchronises to find the largest value; histc counts in float32, exact up to 2 ** 24
        parts = values.float().split(2**24)
        return torch.stack([torch.histc(part, num_bins, 0, num_bins - 1).long() for part in parts]).sum(0)
    return torch.bincount(values, minlength=num_bins)
