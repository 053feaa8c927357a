"""Which parameters learn at which rate, and what more images a step change (reference solver.prototxt)."""

import inspect
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

BIAS_LR_FACTOR = 2.0  # lr_mult 2, decay_mult 0 for biases in every VGG net of the reference release


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, trunk_lr_factor: float = 1.0
) -> list[dict[str, object]]:
    """Optimizer groups: weights with (lr, weight_decay), biases and norms' vectors with (2 lr, 0), without frozen ones.

    trunk_lr_factor: of the parameters under `backbone`, on top; with another than 1, they are groups of their own.
    Each carries its lr_factor, for a schedule to apply.
    """
    members: dict[tuple[float, float], list[Tensor]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            factor, decay = (1.0, weight_decay) if p.ndim > 1 else (BIAS_LR_FACTOR, 0.0)
            if name.startswith("backbone."):
                factor *= trunk_lr_factor
            members.setdefault((factor, decay), []).append(p)
    return [
        {"params": params, "lr": factor * lr, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), params in members.items()
    ]


def batch_rule(lr: float, momentum: float, num_images: int) -> tuple[float, float]:
    """(lr, momentum) for `num_images` a step that follow the run of 1 image a step.

    Keeps the decay per image (momentum ** W) and each image's long-run contribution under a mean of gradients:
    lr * W * (1 - momentum ** W) / (1 - momentum). The PAMI paper argues the same way.
    """
    decayed = momentum**num_images
    return lr * num_images * (1 - decayed) / (1 - momentum), decayed


Kind = TypeVar("Kind", bound=type[torch.optim.Optimizer])


def without_compiler(optimizer: Kind) -> Kind:
    """The optimizer class without its ties to torch.compile, whose import its first use would cost: 150 MB and seconds.

    Only for steps that nothing compiles. A method that is not tied is left as it is.
    """
    tied = ("add_param_group", "zero_grad", "step", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(optimizer, name)) for name in tied}
    plain["step"] = torch.no_grad()(plain["step"])
    return cast(Kind, type(optimizer.__name__, (optimizer,), plain))
