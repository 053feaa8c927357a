"""The four scores of the paper, from one confusion matrix over all pixels (reference score.py)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fcn import IGNORE_LABEL

# What a class without a pixel in truth does to mean IU, by convention; peers' numbers differ by it alone
CONVENTIONS = {
    "reference": "skipped, unless it is predicted: then it counts 0 (score.py, pytorch-fcn, mmsegmentation)",
    "ground_truth": "skipped, even if it is predicted (detectron2, deeplab-pytorch)",
    "absent_is_1": "counts 1, unless it is predicted: then 0 (PaddleSeg)",
    "absent_is_0": "counts 0 (Composer)",
    "plain_mean": "makes the mean nan, unless it is predicted: then it counts 0 (torchvision's references)",
}


@dataclass(frozen=True)
class Scores:
    """Each in 0..1; nan where nothing was there to score.

    pixel_acc: share of valid pixels that are right.   mean_acc: mean over classes of the share of the class's pixels.
    mean_iu: mean intersection over union, by default of the classes in truth or prediction (see CONVENTIONS).
    fw_iu: IU weighted by how often a class occurs.   class_iu: per class, in class order.
    """

    pixel_acc: float
    mean_acc: float
    mean_iu: float
    fw_iu: float
    class_iu: tuple[float, ...]


class ConfusionMatrix:
    """Exact counts of pixels by (label, prediction), kept on a device; counting waits for nothing there."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.num_classes = num_classes
        # By label -1..256 and prediction -1..num_classes: whatever is no class ends in a row or column of its own,
        # so that counting has nothing to select and nothing to ask the device for
        self._counts = torch.zeros(IGNORE_LABEL + 3, num_classes + 2, dtype=torch.int64, device=device)

    @property
    def hist(self) -> Tensor:
        """(num_classes, num_classes) int64: hist[label, prediction].

        ValueError if a value was counted that is neither a class nor, in a label, IGNORE_LABEL.
        """
        classes = self._classes
        if foreign := int(self._counts.sum() - self._counts[1 + IGNORE_LABEL].sum() - classes.sum()):
            raise ValueError(
                f"{foreign} pixels have a label that is neither 0..{self.num_classes - 1} nor {IGNORE_LABEL}, "
                f"or a prediction that is not 0..{self.num_classes - 1}"
            )
        return classes

    @property
    def _classes(self) -> Tensor:
        """The part of the counts where both are classes, a view."""
        return self._counts[1 : 1 + self.num_classes, 1:-1]

    def update(self, prediction: Tensor, label: Tensor) -> "ConfusionMatrix":
        """Counts one image or batch. Both integer, of one shape; IGNORE_LABEL in label is not scored."""
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)} but label is {tuple(label.shape)}")
        row = _bounded(label, IGNORE_LABEL + 1)
        column = _bounded(prediction, self.num_classes)
        width = self._counts.shape[1]
        bins = row.mul_(width).add_(column).add_(width + 1)  # row and column begin at -1
        self._counts += _histogram(bins, self._counts.numel()).view_as(self._counts)
        return self

    def merge(self, hist: Tensor) -> "ConfusionMatrix":
        """Adds another matrix's hist, such as another worker's."""
        self._classes.add_(hist.to(self._counts))
        return self

    def add(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Adds what another matrix of the same classes and device counted, waiting for nothing there."""
        self._counts += other._counts
        return self

    def per_class(self) -> Tensor:
        """(3, num_classes) int64: of each class the pixels that are right, those of its label, those predicted as it.

        On the device, and waiting for nothing there: it is `hist` that finds values which are no class.
        """
        classes = self._classes
        return torch.stack((classes.diagonal(), classes.sum(1), classes.sum(0)))

    def scores(self, convention: str = "reference") -> Scores:
        """The scores of all that was counted so far; convention: a key of CONVENTIONS."""
        hist = self.hist.cpu().double()
        right, truth = hist.diagonal(), hist.sum(1)
        class_iu = right / (truth + hist.sum(0) - right)  # 0 / 0 = nan: in neither truth nor prediction
        frequency = truth / truth.sum()
        return Scores(
            pixel_acc=float(right.sum() / hist.sum()),
            mean_acc=float((right / truth).nanmean()),
            mean_iu=_mean_iu(class_iu, truth, convention),
            fw_iu=float((frequency * class_iu)[frequency > 0].sum()) if hist.sum() else float("nan"),
            class_iu=tuple(class_iu.tolist()),
        )


def best_class(score: Tensor) -> Tensor:
    """score: (N, C, H, W) without nan -> (N, H, W) int64, the class of the highest score, of equal ones the first.

    What score.argmax(1) gives; on a CPU, which jumps from class to class for that, some ten times as fast.
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
    """`label` with all but a band around objects' borders set to IGNORE_LABEL, to score borders alone.

    label: (N, H, W) integer.   The band: valid pixels at most `radius` rows and columns from a void pixel or from
    one of another class. DeepLab and Kraehenbuehl & Koltun plot mean IU against its width.
    """
    if radius < 1:
        raise ValueError(f"radius must be at least 1 pixel, got {radius}")
    # Beyond the image lies more of its outermost pixels, which brings no value into a window that was not there
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
    """`pick` (maximum, minimum) of every `window` values side by side along dim, of which there are window - 1 fewer.

    By windows of 1, 2, 4, ... and two of the last kind that overlap: 30 times as fast as max_pool2d on a CPU.
    """

    def beside(distance: int) -> Tensor:
        num = values.shape[dim] - distance
        return pick(values.narrow(dim, 0, num), values.narrow(dim, distance, num))

    width = 1
    while 2 * width <= window:
        values = beside(width)
        width *= 2
    return beside(window - width)


def _mean_iu(class_iu: Tensor, truth: Tensor, convention: str) -> float:
    match convention:
        case "reference":
            return float(class_iu.nanmean())
        case "ground_truth":
            return float(class_iu[truth > 0].mean())
        case "absent_is_1":
            return float(class_iu.nan_to_num(1.0).mean())
        case "absent_is_0":
            return float(class_iu.nan_to_num(0.0).mean())
        case "plain_mean":
            return float(class_iu.mean())
    raise ValueError(f"unknown convention {convention!r}; known: {', '.join(CONVENTIONS)}")


def _bounded(values: Tensor, most: int) -> Tensor:
    """(N,) int32, not the argument's memory: values in -1..most, what lies outside is brought to the nearer end."""
    values = values.flatten()
    if values.dtype == torch.int64:  # clamped before it is narrowed, or 2 ** 32 would be 0
        return values.clamp(-1, most).int()
    return values.to(torch.int32, copy=True).clamp_(-1, most)


def _histogram(values: Tensor, num_bins: int) -> Tensor:
    """int64 counts of values 0..num_bins-1."""
    if values.is_cuda:
        # bincount asks the host for the largest value; histc counts in float32, exact up to 2 ** 24 pixels a call
        return torch.histc(values.float(), num_bins, 0, num_bins - 1).long()
    return torch.bincount(values, minlength=num_bins)
