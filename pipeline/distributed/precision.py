"""Mixed precision of the forward pass."""

from contextlib import AbstractContextManager, nullcontext

import torch

from pipeline.distributed.rank import Rank

CPU_FEATURES = (
    "avx512_bf16",
    "amx_bf16",
)  # instructions that multiply bfloat16 numbers; without, it is slower


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return a context that computes in bfloat16 if `precision` is "bfloat16"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def agreed(precision: str, rank: Rank) -> str:
    """Return "float32" or "bfloat16": what "auto" stands for, the same on every worker, or `precision` as it is.

    "auto" is bfloat16 if the device of every worker multiplies such numbers.
    """
    if precision != "auto":
        return precision
    return "bfloat16" if all(rank.gather(has_bfloat16(rank.device))) else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a GPU, or this machine's processor, multiplies bfloat16 numbers."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature) for feature in CPU_FEATURES)
