"""What surrounds the matrix products of a block, in few passes over memory: Triton on a GPU, PyTorch elsewhere.

Besides the letters of `adaptive_span.model`: R = B·M rows.
"""

import functools
import importlib.util
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_span.attention.own_types import uncompiled
from adaptive_span.hardware.compilers import why_triton_cannot_build

LEAST_CAPABILITY = (8, 0)  # bfloat16 in hardware


class Hidden(NamedTuple):
    """Hold hidden states, and the same as precise as matrix products read them: one tensor where that is the same."""

    exact: Tensor  # (B, M, C)
    operand: Tensor  # (B, M, C)


def in_autocast(tensor: Tensor) -> Tensor:
    """Return the tensor in the type that matrix products are made in."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def with_operand(exact: Tensor) -> Hidden:
    """Return (B, M, C) with its copy for products."""
    return Hidden(exact, in_autocast(exact))


def add_and_norm(residual: Tensor, branch: Tensor, norm: nn.LayerNorm) -> Hidden:
    """Add a branch to its residual, and normalize.

    Args:
        residual: (B, M, C).
        branch: (B, M, C).
        norm: the layer norm.

    Returns:
        LN(residual + branch), (B, M, C).
    """
    if not in_triton(residual):
        return with_operand(norm(residual + branch))
    from adaptive_span.model.elementwise import fused

    return fused.add_and_norm(residual, branch, None, norm)


def feed_forward(states: Hidden, expand: nn.Linear, contract: nn.Linear, dropout: float, norm: nn.LayerNorm) -> Hidden:
    """Run a feed-forward block.

    Args:
        states: h, (B, M, C).
        expand: W₁ and b₁, from C to F.
        contract: W₂ and b₂, from F to C.
        dropout: the rate; 0 outside training.
        norm: the layer norm.

    Returns:
        LN(h + W₂ dropout(ReLU(W₁ h + b₁)) + b₂), (B, M, C).
    """
    if not in_triton(states.exact):
        inner = F.dropout(F.relu(expand(states.operand)), dropout, training=dropout > 0)  # (B, M, F)
        return with_operand(norm(states.exact + contract(inner)))
    from adaptive_span.model.elementwise import fused

    branch = fused.feed_forward(states.operand, expand, contract.weight, dropout)
    return fused.add_and_norm(states.exact, branch, contract.bias, norm)  # which also sums the bias's gradient


def in_triton(tensor: Tensor) -> bool:
    """Return whether kernels of our own run where this tensor is."""
    return tensor.is_cuda and _can_compile(tensor.device)


@uncompiled
@functools.cache
def _can_compile(device: torch.device) -> bool:
    """Return whether Triton can compile for this GPU, for which it also needs a C compiler."""
    if importlib.util.find_spec("triton") is None or torch.version.hip is not None:  # ROCm: untested
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY and why_triton_cannot_build() is None
