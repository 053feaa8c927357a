"""Mixed precision of the forward pass."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return a context that computes in bfloat16 if `precision` is "bfloat16", or "auto" on a GPU that has it."""
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    is_used = precision == "bfloat16" or (precision == "auto" and has_bfloat16)
    return torch.autocast(device.type, torch.bfloat16) if is_used else nullcontext()
