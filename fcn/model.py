"""The fully convolutional network: a classifier's trunk, scores at strides 32, 16 and 8, upsampling to pixels."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn.backbones.alexnet import AlexNet, CaffeNet
from fcn.backbones.efficientnet_lite import SIZES, EfficientNetLite
from fcn.backbones.features import Backbone
from fcn.backbones.googlenet import GoogLeNet
from fcn.backbones.mobilenet import MobileNetV1
from fcn.backbones.resnet import ResNet50
from fcn.backbones.vgg import VGG16
from fcn.geometry import IMAGE, CoordMap, crop_offset, upsampling_kernel

BACKBONES: Mapping[str, Callable[..., Backbone]] = {
    "alexnet": AlexNet,
    "caffenet": CaffeNet,
    "googlenet": GoogLeNet,
    "mobilenet_v1": MobileNetV1,
    "resnet50": ResNet50,
    "vgg16": VGG16,
} | {size: partial(EfficientNetLite, size) for size in SIZES}
STRIDES = (32, 16, 8)
AT_ONCE_SCALES = {"pool4": 0.01, "pool3": 0.0001}  # reference voc-fcn8s-atonce/net.py
FUSIONS = ("sum", "max")
SCORE_INITS = ("zero", "random")
LEARN_UPSCORE = (False, "intermediate", True)


class FCN(nn.Module):
    """FCN-32s, FCN-16s or FCN-8s: class scores for every pixel of an image of any size.

    num_classes: the number of classes, background included.
    stride: 32, 16 or 8: the stride of the finest features that are scored.
    backbone: a key of BACKBONES.
    padding: "reference" or "tight"; see VGG16. Backbones other than VGG-16 and AlexNet have "reference" only.
    learn_upscore: which upsampling layers learn, each starting as bilinear interpolation. False: none, as in the
        reference release. "intermediate": all but the last, as in CVPR section 4.3. True: all.
    at_once: whether this is the FCN-8s trained without stages, whose skips are scaled by AT_ONCE_SCALES.
    fusion: "sum", or "max", which the paper found hard to learn.
    score_init: "zero" as in the reference release, or "random" (He et al.); the paper found no difference.
    fixed_trunk: whether only the score layers learn (CVPR Table 2, "FCN-32s-fixed"); batch norm then keeps its
        statistics.
    backbone_options: keyword arguments of the backbone.

    Raises ValueError for an unknown name or option, naming those that are known.
    """

    def __init__(
        self,
        num_classes: int = 21,
        stride: int = 8,
        backbone: str = "vgg16",
        padding: str = "reference",
        learn_upscore: bool | str = False,
        at_once: bool = False,
        fusion: str = "sum",
        score_init: str = "zero",
        fixed_trunk: bool = False,
        **backbone_options: object,
    ):
        super().__init__()
        if stride not in STRIDES:
            raise ValueError(f"stride must be 32, 16 or 8, got {stride}")
        _check_known("backbone", backbone, sorted(BACKBONES))
        _check_known("fusion", fusion, FUSIONS)
        _check_known("score_init", score_init, SCORE_INITS)
        _check_known("learn_upscore", learn_upscore, LEARN_UPSCORE)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        for option in backbone_options:
            _check_known(f"option of {backbone}", option, list(signature(BACKBONES[backbone]).parameters)[1:])
        self.num_classes, self.stride = num_classes, stride
        self.at_once, self.fusion, self.fixed_trunk = at_once, fusion, fixed_trunk
        self.backbone = BACKBONES[backbone](padding, **backbone_options).requires_grad_(not fixed_trunk)
        channels, geometry = self.backbone.channels, self.backbone.geometry

        self.score_fr = score_layer(channels.fc7, num_classes, score_init)
        coarse = geometry.fc7
        if stride <= 16:
            self.upscore2 = upsampling_onto(geometry.pool4, coarse, num_classes, bool(learn_upscore))
            self.score_pool4 = score_layer(channels.pool4, num_classes, score_init)
            coarse = coarse.through([self.upscore2])
            self.offset_pool4 = crop_offset(geometry.pool4, coarse)
        if stride == 8:
            self.upscore_pool4 = upsampling_onto(geometry.pool3, coarse, num_classes, bool(learn_upscore))
            self.score_pool3 = score_layer(channels.pool3, num_classes, score_init)
            coarse = coarse.through([self.upscore_pool4])
            self.offset_pool3 = crop_offset(geometry.pool3, coarse)
        self.last = "upscore" if stride == 32 else f"upscore{stride}"
        self.add_module(self.last, upsampling_onto(IMAGE, coarse, num_classes, learn_upscore is True))
        self.offset_score = crop_offset(coarse.through([self.get_submodule(self.last)]), IMAGE)

    def forward(self, image: Tensor) -> Tensor:
        """Return the class scores (logits) of every pixel, (N, num_classes, H, W) float32.

        image: (N, 3, H, W) RGB, uint8 or float in 0..255, any H, W >= 1.
        """
        check_image(image)
        pool3, pool4, fc7 = self.backbone(image)
        score = self.score_fr(fc7)  # stride 32
        if self.stride <= 16:
            skip = self.score_pool4(self._scaled("pool4", pool4))
            score = self._fused(self.upscore2(score), skip, self.offset_pool4)  # stride 16
        if self.stride == 8:
            skip = self.score_pool3(self._scaled("pool3", pool3))
            score = self._fused(self.upscore_pool4(score), skip, self.offset_pool3)  # stride 8
        # The loss reads a class at a time: of scores in a CPU's layout it would make a copy for each term
        score = aligned(self.get_submodule(self.last)(score.contiguous()), self.offset_score, image)
        return score.to(torch.promote_types(score.dtype, torch.float32))

    def train(self, mode: bool = True) -> "FCN":
        """Set training or evaluation mode; a fixed trunk's batch norm stays in evaluation mode."""
        super().train(mode)
        if self.fixed_trunk:
            for layer in self.backbone.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()
        return self

    def _scaled(self, name: str, features: Tensor) -> Tensor:
        return AT_ONCE_SCALES[name] * features if self.at_once else features

    def _fused(self, upscore: Tensor, skip: Tensor, offset: int) -> Tensor:
        if self.fusion == "max":
            return torch.maximum(upscore, aligned(skip, offset, upscore, outside=-torch.inf))
        return upscore + aligned(skip, offset, upscore)


def score_layer(in_channels: int, num_classes: int, init: str = "zero") -> nn.Conv2d:
    """Return a 1x1 convolution from features to class scores; its bias starts at zero.

    in_channels: channels of the features.
    num_classes: channels of the scores.
    init: "zero", so that a new skip adds nothing at first (reference release), or "random", normal with variance
        2 / in_channels (He et al.), as the trunk's layers.
    """
    layer = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    if init == "random":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def upsampling_onto(
    fine: CoordMap, coarse: CoordMap, num_classes: int, is_learned: bool
) -> nn.ConvTranspose2d:
    """Return the layer that upsamples scores at `coarse` onto the cells of `fine`."""
    kernel, stride = upsampling_kernel(coarse, fine), int(coarse.scale / fine.scale)
    return upsampling(num_classes, kernel, stride, is_learned)


def upsampling(num_classes: int, kernel: int, stride: int, is_learned: bool) -> nn.ConvTranspose2d:
    """Return a transposed convolution that starts as bilinear interpolation of each class.

    A fixed layer has one kernel a class (groups). It computes the same as the reference's C x C kernels, whose
    off-diagonal is zero, with 1/C of the memory. A learned layer has all C x C kernels and can mix classes, as the
    reference's layer can.

    num_classes: the number of classes C.
    kernel, stride: of the transposed convolution, in cells.
    is_learned: whether the kernels learn.
    """
    groups = 1 if is_learned else num_classes
    layer = nn.ConvTranspose2d(num_classes, num_classes, kernel, stride, groups=groups, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        for c in range(num_classes):
            layer.weight[c, c if is_learned else 0] = bilinear_kernel(kernel)
    layer.weight.requires_grad_(is_learned)
    return layer


def bilinear_kernel(size: int) -> Tensor:
    """Return the (size, size) float32 weights of bilinear upsampling by (size + 1) // 2 (reference surgery.py)."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    tent = 1 - (torch.arange(size) - centre).abs() / factor
    return tent[:, None] * tent[None, :]


def aligned(source: Tensor, offset: int, like: Tensor, outside: float = 0.0) -> Tensor:
    """Return `source` cropped or padded from cell (offset, offset) on to the height and width of `like`.

    source: (N, C, h, w).
    offset: cells of source, as geometry.crop_offset returns it; negative: source is padded.
    like: (..., H, W), of which only the size is used.
    outside: the value of cells that source does not reach (tight padding); 0 adds no evidence for any class.
    """
    (height, width), (source_height, source_width) = like.shape[-2:], source.shape[-2:]
    # F.pad with a negative amount crops
    border = (-offset, width + offset - source_width, -offset, height + offset - source_height)
    return F.pad(source, border, value=outside)


def check_image(image: Tensor) -> None:
    """Raise ValueError unless image is (N, 3, H, W) with N, H, W >= 1, uint8 or floating."""
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f"image must be (N, 3, H, W) with N, H, W >= 1, got {tuple(image.shape)}")
    if image.dtype != torch.uint8 and not image.dtype.is_floating_point:
        raise ValueError(f"image must be uint8 or float in 0..255, got {image.dtype}")


def _check_known(name: str, value: object, known: Collection[object]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(map(str, known))}")
