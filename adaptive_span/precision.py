"""Whether this machine multiplies in the precision that is asked of it."""

import torch

EMULATED = "warning: this processor has no instructions for bf16: it is emulated, and slower than fp32"
NATIVE = ("avx512_bf16", "amx_bf16", "bf16")  # of x86-64, and of 64-bit Arm


def is_emulated(precision: str, device: torch.device) -> bool:
    """Return whether this is bf16 on a processor that has no instructions for it."""
    return precision == "bf16" and device.type == "cpu" and not any(map(torch.cpu.get_capabilities().get, NATIVE))
