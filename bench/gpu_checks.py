"""Correctness on the GPU against the CPU: nets, counts and losses, tiles."""

import copy
from collections.abc import Iterator
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu_result import Row
from bench.gpu_setup import NUM_CLASSES, Bench, drawn_labels, l2_error, relative_error, tf32
from fcn.loss import (
    count_valid,
    inverse_weights,
    mean_over_images,
    mean_over_pixels,
    mean_pixel_cross_entropy,
    sum_over_pixels,
    weighted_sum,
)
from fcn.metrics import ConfusionMatrix, best_class, trimap
from fcn.model import BACKBONES, FCN, STRIDES
from pipeline.models.predictor import Predictor
from pipeline.models.tiles import overlap

FLOAT32_LIMIT = 1e-4  # of scores, GPU against CPU, without TF32
GRADIENT_LIMIT = (
    1e-2  # a ReLU or a pooling window that flips at a rounding changes gradients by more than rounding
)
BFLOAT16_LIMIT = 0.05  # CPUs miss by 0.003 to 0.014, and a faulty kernel by much more
LOSS_LIMIT = 1e-12  # in float64: the order of sums
TIGHT = ("alexnet", "caffenet", "vgg16")  # backbones that have this padding
LARGE_SIDE = 5000  # 25 million pixels: more than float32 can count one by one


def nets(bench: Bench) -> Iterator[Row]:
    """Every backbone and stride, with random weights: scores and gradients. A row gives the worst stride."""
    torch.manual_seed(0)
    size = (33, 45) if bench.is_small else (97, 131)
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    label = torch.randint(0, NUM_CLASSES, (2, *size))
    for backbone, make in BACKBONES.items():
        options: dict[str, Any] = {}
        if bench.is_small:
            options = {"width": 1 / 32} if "width" in signature(make).parameters else {}
            options |= {"padding": "tight"} if backbone in TIGHT else {}
        scores, rounded, gradients = {}, {}, {}
        for stride in STRIDES:
            with bench.device:
                net = FCN(NUM_CLASSES, stride, backbone, score_init="random", **options).eval()
            on_cpu = copy.deepcopy(net).cpu()
            with tf32(False):
                score, gradient = score_and_gradient(net, image.to(bench.device), label.to(bench.device))
                expected_score, expected_gradient = score_and_gradient(on_cpu, image, label)
                scores[stride] = relative_error(score, expected_score)
                gradients[stride] = l2_error(gradient, expected_gradient)
            with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16):
                rounded[stride] = l2_error(net(image.to(bench.device)), score)
        device = bench.device.type
        yield worst(f"{backbone}: scores, {device} against CPU, float32", scores, FLOAT32_LIMIT)
        yield worst(f"{backbone}: gradient, {device} against CPU, float32", gradients, GRADIENT_LIMIT)
        yield worst(f"{backbone}: scores, bfloat16 against float32", rounded, BFLOAT16_LIMIT)


def worst(name: str, errors: dict[int, float], limit: float) -> Row:
    stride = max(errors, key=lambda stride: (errors[stride] != errors[stride], errors[stride]))
    return Row(name, errors[stride], "relative", limit, note=f"worst stride: {stride}")


def score_and_gradient(net: FCN, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return (score, the gradient of all parameters as one vector)."""
    score = net(image)
    mean_pixel_cross_entropy(score, label).backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    return score.detach(), gradient


def counts(bench: Bench) -> Iterator[Row]:
    """Confusion matrix, bands along borders and losses on the same pixels."""
    torch.manual_seed(0)
    device, (height, width) = bench.device, bench.image_size
    prediction, label = drawn_labels(2 if bench.is_small else 16, height, width)
    on_device = prediction.to(device), label.to(device)
    matrices = [
        ConfusionMatrix(NUM_CLASSES, place).update(*pixels)
        for place, pixels in (("cpu", (prediction, label)), (device, on_device))
    ]
    yield differing("confusion matrix", matrices[1].hist, matrices[0].hist)
    yield differing("confusion matrix, per class", matrices[1].per_class(), matrices[0].per_class())
    side = 500 if bench.is_small else LARGE_SIDE
    many = torch.zeros(side, side, dtype=torch.uint8, device=device)
    total = ConfusionMatrix(NUM_CLASSES, device).update(many, many).hist[0, 0]
    yield differing(f"confusion matrix, {side**2} pixels of one class", total, torch.tensor(side**2))
    for radius in (1, 5, 20):
        name = f"band of {radius} pixels along borders"
        yield differing(name, trimap(on_device[1], radius), trimap(label, radius))
    score = torch.randn(len(label), NUM_CLASSES, height, width)
    yield differing("best class", best_class(score.to(device)), best_class(score))
    yield from losses(bench, score[:4].double(), label[:4].long(), matrices[0].per_class()[1])


def losses(bench: Bench, score: Tensor, label: Tensor, class_pixels: Tensor) -> Iterator[Row]:
    """Each loss and its gradient. Float sums depend on their order, so float64 stands in for "exactly"."""
    entropy, weight = {"cross_entropy": 1.0}, inverse_weights(class_pixels).double()
    for name, terms, class_weight, normalised in (
        ("sum", entropy, None, lambda loss, _: sum_over_pixels(loss)),
        ("mean", entropy, None, lambda loss, label: mean_over_pixels(loss, count_valid(label))),
        ("image_mean", entropy, None, mean_over_images),
        ("sum, classes weighted", entropy, weight, lambda loss, _: sum_over_pixels(loss)),
        ("of focal and Dice", {"focal": 1.0, "dice": 1.0}, weight, mean_over_images),
    ):
        values = []
        for device in (torch.device("cpu"), bench.device):
            leaf, labels = score.to(device).requires_grad_(), label.to(device)
            factors = None if class_weight is None else class_weight.to(device)
            value = normalised(weighted_sum(leaf, labels, terms, factors), labels)
            value.backward()
            assert leaf.grad is not None
            values.append((value, leaf.grad))
        errors = [relative_error(result, expected) for expected, result in zip(*values, strict=True)]
        yield Row(f"loss {name} and its gradient, float64", max(errors), "relative", LOSS_LIMIT)


def differing(name: str, result: Tensor, expected: Tensor) -> Row:
    assert result.shape == expected.shape, (result.shape, expected.shape)
    return Row(name, float((result.cpu() != expected).sum()), "values differ", 0)


@torch.no_grad()
def tiles(bench: Bench) -> Iterator[Row]:
    """A photo in overlapping tiles against the same photo at once."""
    torch.manual_seed(0)
    options = {"width": 1 / 64, "fc6_kernel": 1} if bench.is_small else {}
    with bench.device:
        net = FCN(NUM_CLASSES, 8, padding="tight", score_init="random", **options).eval()
    seam = overlap(net)
    side = 2 * seam.margin + 2 * seam.stride
    height, width = side + 3 * seam.stride + 7, side
    photo = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy()
    photo = np.repeat(np.repeat(photo[::8, ::8], 8, 0), 8, 1)[:height, :width]  # structure, not pixel noise
    predictor = Predictor(net, [str(c) for c in range(NUM_CLASSES)], bench.device)
    with tf32(False):
        (whole,) = predictor.parts(photo, 10 * side, with_score=True)
        assert whole.score is not None
        score = np.empty_like(whole.score)
        parts = list(predictor.parts(photo, side, with_score=True))
        for part in parts:
            score[:, *part.region] = part.score
        label = predictor.label_map(photo, side)
    note = f"{len(parts)} tiles of {width}x{side} of a photo of {width}x{height}"
    error = relative_error(torch.from_numpy(score), torch.from_numpy(whole.score))
    yield Row(
        "Predictor: scores of tiles against the whole photo", error, "relative", FLOAT32_LIMIT, note=note
    )
    ranked = np.sort(whole.score, axis=0)
    is_close = ranked[-1] - ranked[-2] < FLOAT32_LIMIT * np.abs(whole.score).max()
    num_wrong = int(((label != whole.label) & ~is_close).sum())
    note = f"beside {int(((label != whole.label) & is_close).sum())} pixels whose two best classes tie"
    yield Row("Predictor: label map of tiles", num_wrong, "pixels differ", 0, note=note)
