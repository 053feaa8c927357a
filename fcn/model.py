"""The fully convolutional network: a classifier's trunk, a score for every cell, and the way back to pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn.geometry import IMAGE, crop_offset
from fcn.vgg import VGG16

BACKBONES = {"vgg16": VGG16}
STRIDES = (32, 16, 8)
AT_ONCE_SCALES = {"pool4": 0.01, "pool3": 0.0001}  # reference voc-fcn8s-atonce/net.py


class FCN(nn.Module):
    """FCN-32s, FCN-16s or FCN-8s.

    stride: 32, 16 or 8.   backbone: a name in BACKBONES; backbone_options go to it.   padding: see VGG16.
    learn_upscore: learn the upsampling kernels, which begin bilinear; the reference release keeps them fixed.
    at_once: the FCN-8s that is trained without stages; its skips are scaled down by fixed factors.
    """

    def __init__(
        self,
        num_classes: int = 21,
        stride: int = 8,
        backbone: str = "vgg16",
        padding: str = "reference",
        learn_upscore: bool = False,
        at_once: bool = False,
        **backbone_options: object,
    ):
        super().__init__()
        if stride not in STRIDES:
            raise ValueError(f"stride must be 32, 16 or 8, got {stride}")
        if backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {backbone!r}; known: {', '.join(sorted(BACKBONES))}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes, self.stride, self.at_once = num_classes, stride, at_once
        self.backbone = BACKBONES[backbone](padding, **backbone_options)  # pyright: ignore[reportArgumentType]
        channels, geometry = self.backbone.channels, self.backbone.geometry

        self.score_fr = score_layer(channels.fc7, num_classes)
        coarse = geometry.fc7
        if stride <= 16:
            self.upscore2 = upsampling(num_classes, 4, 2, learn_upscore)
            self.score_pool4 = score_layer(channels.pool4, num_classes)
            coarse = coarse.through([self.upscore2])
            self.offset_pool4 = crop_offset(geometry.pool4, coarse)
        if stride == 8:
            self.upscore_pool4 = upsampling(num_classes, 4, 2, learn_upscore)
            self.score_pool3 = score_layer(channels.pool3, num_classes)
            coarse = coarse.through([self.upscore_pool4])
            self.offset_pool3 = crop_offset(geometry.pool3, coarse)
        self.last = "upscore" if stride == 32 else f"upscore{stride}"
        self.add_module(self.last, upsampling(num_classes, 2 * stride, stride, learn_upscore))
        self.offset_score = crop_offset(coarse.through([self.get_submodule(self.last)]), IMAGE)

    def forward(self, image: Tensor) -> Tensor:
        """image: (N, 3, H, W) RGB, uint8 or float in 0..255, any H, W >= 1 -> score (N, num_classes, H, W) float32."""
        check_image(image)
        pool3, pool4, fc7 = self.backbone(image)
        score = self.score_fr(fc7)
        if self.stride <= 16:
            upscore2 = self.upscore2(score)
            score = upscore2 + aligned(
                self.score_pool4(self._skip("pool4", pool4)), self.offset_pool4, upscore2
            )
        if self.stride == 8:
            upscore_pool4 = self.upscore_pool4(score)
            score = upscore_pool4 + aligned(
                self.score_pool3(self._skip("pool3", pool3)), self.offset_pool3, upscore_pool4
            )
        upscore = self.get_submodule(self.last)(score)
        score = aligned(upscore, self.offset_score, image)
        return score.to(torch.promote_types(score.dtype, torch.float32))

    def _skip(self, name: str, features: Tensor) -> Tensor:
        return AT_ONCE_SCALES[name] * features if self.at_once else features


def score_layer(in_channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution to class scores. Zero, so a new skip contributes nothing at first (reference release)."""
    layer = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


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


def aligned(source: Tensor, offset: int, like: Tensor) -> Tensor:
    """`source` from cell (offset, offset) on, in the height and width of `like`.

    Where source does not reach (tight padding), zeros: no evidence for any class.
    """
    (height, width), (have_h, have_w) = like.shape[-2:], source.shape[-2:]
    # F.pad with a negative amount crops
    return F.pad(source, (-offset, width + offset - have_w, -offset, height + offset - have_h))


def check_image(image: Tensor) -> None:
    """ValueError unless image is (N, 3, H, W), N, H, W >= 1, uint8 or floating."""
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f"image must be (N, 3, H, W) with N, H, W >= 1, got {tuple(image.shape)}")
    if image.dtype != torch.uint8 and not image.dtype.is_floating_point:
        raise ValueError(f"image must be uint8 or float in 0..255, got {image.dtype}")
