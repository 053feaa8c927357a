"""The learning rate: of each parameter, of each step, and of larger batches (reference solver.prototxt)."""

import math

from torch import Tensor, nn

BIAS_LR_FACTOR = 2.0  # lr_mult 2, decay_mult 0 for biases in every VGG net of the reference release
POLY_POWER = 0.9  # Chen et al., DeepLab


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, trunk_lr_factor: float = 1.0
) -> list[dict[str, object]]:
    """Return an optimizer's parameter groups; parameters that do not require a gradient are left out.

    Weights learn at `lr` with `weight_decay`; biases and the vectors of batch norm at twice the rate without decay.
    Each group holds its lr_factor, by which a schedule multiplies the rate of a step.

    model: the net; its trunk is the submodule `backbone`.
    lr: the learning rate of the score layers' weights.
    weight_decay: of weights.
    trunk_lr_factor: factor of the trunk's rate. Unless it is 1, the trunk's parameters form groups of their own.
    """
    members: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor, decay = (1.0, weight_decay) if parameter.ndim > 1 else (BIAS_LR_FACTOR, 0.0)
            if name.startswith("backbone."):
                factor *= trunk_lr_factor
            members.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": params, "lr": factor * lr, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), params in members.items()
    ]


def learning_rate(
    lr: float, schedule: str, step: int, iterations: int, warmup: int = 0, cooldown: float | None = None
) -> float:
    """Return the learning rate of weights at one step.

    lr: the highest rate.
    schedule: "fixed"; "poly", which falls to 0 with (1 - step / iterations) ** POLY_POWER; "cosine", which falls to 0
        along half a period of the cosine; or "cooldown", which is fixed, then falls to 0 linearly.
    step: 0..iterations - 1.
    iterations: the number of steps of the whole run.
    warmup: the first steps, whose rates are multiplied by 1 / warmup, 2 / warmup, ..., 1.
    cooldown: the last share of the steps of schedule "cooldown", in which the rate falls.
    """
    match schedule:
        case "poly":
            lr *= (1 - step / iterations) ** POLY_POWER
        case "cosine":
            lr *= (1 + math.cos(math.pi * step / iterations)) / 2
        case "cooldown":
            start = constant_steps(schedule, iterations, cooldown)
            lr *= min(1.0, (iterations - step) / (iterations - start))
    return lr * min(1.0, (step + 1) / warmup) if warmup else lr


def constant_steps(schedule: str, iterations: int, cooldown: float | None = None) -> int:
    """Return the number of first steps whose rates do not depend on `iterations`: a longer run has the same."""
    if schedule == "cooldown":
        assert cooldown is not None
        return iterations - math.ceil(cooldown * iterations)
    return iterations if schedule == "fixed" else 0


def batch_rule(lr: float, momentum: float, num_images: int) -> tuple[float, float]:
    """Return (lr, momentum) that make steps of several images train like steps of one image.

    The rule keeps momentum's decay per image, so a step of W = num_images images decays by momentum ** W. It also keeps
    what each image contributes in the long run: with gradients averaged over the step's images, the rate is
    lr * W * (1 - momentum ** W) / (1 - momentum). The PAMI paper argues in the same way.

    lr: learning rate of the run with one image per step.
    momentum: momentum of that run.
    num_images: images per step.
    """
    decayed = momentum**num_images
    return lr * num_images * (1 - decayed) / (1 - momentum), decayed
