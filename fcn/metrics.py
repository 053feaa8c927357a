"""The four scores of the paper, from one confusion matrix over all pixels (reference score.py)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fcn import IGNORE_LABEL


@dataclass(frozen=True)
class Scores:
    """Each in 0..1; nan where nothing was there to score.

    pixel_acc: share of valid pixels that are right.   mean_acc: mean over classes of the share of the class's pixels.
    mean_iu: mean intersection over union; a class neither in truth nor prediction does not count, one that is
    predicted but absent counts 0.   fw_iu: IU weighted by how often a class occurs.
    class_iu: per class, in class order.
    """

    pixel_acc: float
    mean_acc: float
    mean_iu: float
    fw_iu: float
    class_iu: tuple[float, ...]


class ConfusionMatrix:
    """Exact counts of pixels, hist[label, prediction], int64."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.num_classes = num_classes
        self.hist = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> "ConfusionMatrix":
        """Counts one image or batch. Both integer, of one shape; label may hold IGNORE_LABEL, which is not counted."""
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)} but label is {tuple(label.shape)}")
        valid = label != IGNORE_LABEL
        label, prediction = label[valid].long(), prediction[valid].long()
        for name, values in (("label", label), ("prediction", prediction)):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < self.num_classes:
                found = f"{int(values.min())}..{int(values.max())}"
                raise ValueError(f"{name} must be 0..{self.num_classes - 1} or {IGNORE_LABEL}, got {found}")
        pairs = torch.bincount(self.num_classes * label + prediction, minlength=self.num_classes**2)
        self.hist += pairs.view_as(self.hist)
        return self

    def merge(self, hist: Tensor) -> "ConfusionMatrix":
        """Adds another matrix's counts, such as another worker's."""
        self.hist += hist.to(self.hist)
        return self

    def scores(self) -> Scores:
        """The scores of all that was counted so far."""
        hist = self.hist.double().cpu()
        right, truth = hist.diagonal(), hist.sum(1)
        class_iu = right / (truth + hist.sum(0) - right)  # 0 / 0 = nan: in neither truth nor prediction
        frequency = truth / truth.sum()
        return Scores(
            pixel_acc=float(right.sum() / hist.sum()),
            mean_acc=float((right / truth).nanmean()),
            mean_iu=float(class_iu.nanmean()),
            fw_iu=float((frequency * class_iu)[frequency > 0].sum()) if hist.sum() else float("nan"),
            class_iu=tuple(class_iu.tolist()),
        )
