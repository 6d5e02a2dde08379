"""Choose the precision of matrix products. Parameters, updates and sums stay in fp32 in all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adaptive_span.config.hardware_schema import PRECISIONS
from adaptive_span.errors import UserError, shown
from adaptive_span.hardware import machine
from adaptive_span.hardware.gpu import TENSOR_CORES, Gpu, describe

EMULATED = "warning: this processor has no instructions for bf16: it is emulated, and slower than fp32"
NATIVE = ("avx512_bf16", "amx_bf16", "bf16")  # of x86-64, and of 64-bit Arm


def choose(asked: str, before: str | None, device: torch.device) -> tuple[str, str]:
    """Choose the precision of a training.

    Args:
        asked: `hardware.precision`.
        before: That of the run's checkpoint; None where the run starts.
        device: Where it computes.

    Returns:
        The precision, and the reason, for people.

    Raises:
        UserError: The device lacks what is asked for.
    """
    return decide(asked, before, device.type, describe(device) if device.type == "cuda" else None)


def decide(asked: str, before: str | None, kind: str, gpu: Gpu | None) -> tuple[str, str]:
    """Choose as `choose` does, from a device's kind (cpu, cuda, mps) and the GPU that a cuda device is."""
    if asked != "auto":
        name, reason, subject = asked, "as asked for", f"hardware.precision={asked}"
    elif before is not None:
        name, reason, subject = (
            before,
            "as it was begun",
            f"the run was begun with hardware.precision={shown(before)}, which",
        )
    elif gpu is not None and gpu.multiplies_bf16:
        return "bf16", f"{gpu} multiplies in it"
    else:
        return "fp32", _why_fp32(kind, gpu)
    if problem := _problem(name, kind, gpu):
        raise UserError(f"{subject} {problem}; take hardware.precision=fp32")
    return name, reason


def _why_fp32(kind: str, gpu: Gpu | None) -> str:
    if gpu is None:
        return "a GPU of Apple's is untested in bf16" if kind == "mps" else "no GPU"
    return "bf16 is untested on ROCm" if gpu.is_rocm else f"{gpu} has no bf16 in hardware"


def _problem(name: str, kind: str, gpu: Gpu | None) -> str | None:
    """Return what keeps a device from computing in a precision, as part of a sentence; None where it does."""
    if name not in PRECISIONS:
        return "this version of adaptive-span does not know"
    least = ".".join(map(str, TENSOR_CORES))
    if name == "tf32" and (gpu is None or not gpu.multiplies_bf16):
        this_device = gpu or f"a device of kind {kind}"
        return f"needs an NVIDIA GPU of compute capability {least} or more, and this is {this_device}"
    if name == "bf16" and kind == "mps":
        return "is untested with hardware.device=mps"
    if name == "bf16" and gpu is not None and not gpu.is_rocm and not gpu.multiplies_bf16:
        return f"would be emulated on {gpu}, slower than fp32: the hardware has it from {least} on"
    return None


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Let CUDA multiply fp32 matrices with 10 bits of mantissa, on tensor cores, within this context."""
    before = torch.backends.cuda.matmul.fp32_precision
    if wanted:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def is_emulated(precision: str, device: torch.device) -> bool:
    """Return whether this is bf16 on a processor without instructions for it."""
    if precision != "bf16" or device.type != "cpu":
        return False
    known = machine.instructions()
    return known is not None and known.isdisjoint(NATIVE)
