"""The fully convolutional network: a classifier's trunk, a score for every cell, and the way back to pixels."""

from collections.abc import Callable, Collection
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn.backbones.alexnet import AlexNet, CaffeNet
from fcn.backbones.features import Backbone
from fcn.backbones.googlenet import GoogLeNet
from fcn.backbones.mobilenet import MobileNetV1
from fcn.backbones.resnet import ResNet50
from fcn.backbones.vgg import VGG16
from fcn.geometry import IMAGE, CoordMap, crop_offset, upsampling_kernel

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "alexnet": AlexNet,
    "caffenet": CaffeNet,
    "googlenet": GoogLeNet,
    "mobilenet_v1": MobileNetV1,
    "resnet50": ResNet50,
    "vgg16": VGG16,
}
STRIDES = (32, 16, 8)
AT_ONCE_SCALES = {"pool4": 0.01, "pool3": 0.0001}  # reference voc-fcn8s-atonce/net.py
FUSIONS = ("sum", "max")
SCORE_INITS = ("zero", "random")
LEARN_UPSCORE = (False, "intermediate", True)


class FCN(nn.Module):
    """FCN-32s, FCN-16s or FCN-8s.

    stride: 32, 16 or 8.   backbone: a name in BACKBONES; backbone_options go to it.   padding: see VGG16.
    learn_upscore: False, as in the reference release; "intermediate": all but the last upsampling, as in CVPR 4.3;
        or True. Each begins bilinear.
    at_once: the FCN-8s that is trained without stages; its skips are scaled down by fixed factors.
    fusion: "sum", or "max", which the paper found hard to learn.
    score_init: "zero" as in the reference release, or "random" (He et al.); the paper found no difference.
    fixed_trunk: the score layers alone learn (CVPR Table 2, "FCN-32s-fixed"); batch norm keeps its statistics.
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
        """image: (N, 3, H, W) RGB, uint8 or float in 0..255, any H, W >= 1 -> score (N, num_classes, H, W) float32."""
        check_image(image)
        pool3, pool4, fc7 = self.backbone(image)
        score = self.score_fr(fc7)
        if self.stride <= 16:
            skip = self.score_pool4(self._scaled("pool4", pool4))
            score = self._fused(self.upscore2(score), skip, self.offset_pool4)
        if self.stride == 8:
            skip = self.score_pool3(self._scaled("pool3", pool3))
            score = self._fused(self.upscore_pool4(score), skip, self.offset_pool3)
        score = aligned(self.get_submodule(self.last)(score), self.offset_score, image)
        return score.to(torch.promote_types(score.dtype, torch.float32))

    def train(self, mode: bool = True) -> "FCN":
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
    """A 1x1 convolution to class scores. Zero, so a new skip contributes nothing at first (reference release).

    Random: normal of variance 2 / in_channels (He et al.), as the trunk's layers are drawn; the bias is zero.
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
    """The upsampling of scores at `coarse` to the stride of `fine`, with the window that meets its cells."""
    kernel, stride = upsampling_kernel(coarse, fine), int(coarse.scale / fine.scale)
    return upsampling(num_classes, kernel, stride, is_learned)


def upsampling(num_classes: int, kernel: int, stride: int, is_learned: bool) -> nn.ConvTranspose2d:
    """A transposed convolution that begins as bilinear interpolation of every class by itself.

    Fixed, it has one kernel a class (groups): what the reference's C x C kernels with a zero off-diagonal compute,
    at 1/C of the memory. Learned, it is the full C x C, free to mix classes, as the reference's layer is.
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
    """(size, size) float32 weights of bilinear upsampling by (size + 1) // 2 (reference surgery.py)."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    tent = 1 - (torch.arange(size) - centre).abs() / factor
    return tent[:, None] * tent[None, :]


def aligned(source: Tensor, offset: int, like: Tensor, outside: float = 0.0) -> Tensor:
    """`source` from cell (offset, offset) on, in the height and width of `like`.

    outside: what stands where source does not reach (tight padding). Of a sum, zeros: no evidence for any class.
    """
    (height, width), (have_h, have_w) = like.shape[-2:], source.shape[-2:]
    # F.pad with a negative amount crops
    border = (-offset, width + offset - have_w, -offset, height + offset - have_h)
    return F.pad(source, border, value=outside)


def check_image(image: Tensor) -> None:
    """ValueError unless image is (N, 3, H, W), N, H, W >= 1, uint8 or floating."""
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f"image must be (N, 3, H, W) with N, H, W >= 1, got {tuple(image.shape)}")
    if image.dtype != torch.uint8 and not image.dtype.is_floating_point:
        raise ValueError(f"image must be uint8 or float in 0..255, got {image.dtype}")


def _check_known(name: str, value: object, known: Collection[object]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(map(str, known))}")
