"""What surrounds the matrix products of a block, in few passes over memory: Triton on a GPU, PyTorch elsewhere.

Besides the letters of `adaptive_span.model`: R = B·M rows.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_span.attention.own_types import uncompiled
from adaptive_span.hardware.compilers import why_triton_cannot_build
from adaptive_span.model.norm import Norm

LEAST_CAPABILITY = (8, 0)  # bfloat16 in hardware


def squared_relu(x: Tensor) -> Tensor:
    """Return ReLU(x)² (arXiv 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "relu2": squared_relu}


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


def normalized(exact: Tensor, norm: Norm, is_pre: bool) -> Hidden:
    """Return what the next block begins with: post-norm the norm of (B, M, C), pre-norm these beside their norm."""
    return Hidden(exact, in_autocast(norm(exact))) if is_pre else with_operand(norm(exact))


def add_and_norm(residual: Tensor, branch: Tensor, norm: Norm, is_pre: bool) -> Hidden:
    """Add a branch to its residual, and normalize.

    Args:
        residual: (B, M, C).
        branch: (B, M, C).
        norm: the norm; pre-norm that of the next block.
        is_pre: whether the sum goes on as it is, and its norm is what products read alone.

    Returns:
        Norm(residual + branch), (B, M, C).
    """
    if not in_triton(residual):
        return normalized(residual + branch, norm, is_pre)
    from adaptive_span.model.elementwise import fused

    return fused.add_and_norm(residual, branch, None, norm, is_pre)


class FeedForward(NamedTuple):
    """Name the parts of a feed-forward: W₂ dropout(f(W₁ x + b₁)) + b₂."""

    expand: nn.Linear  # W₁ and b₁, from C to F
    contract: nn.Linear  # W₂ and b₂, from F to C
    gate: nn.Linear | None  # of swiglu, from C to F
    activation: str  # f
    dropout: float  # 0 outside training

    def inner(self, states: Tensor) -> Tensor:
        """Return dropout(f(W₁ x + b₁)), (B, M, F), or dropout(SiLU(W₃ x + b₃) · (W₁ x + b₁)), of states (B, M, C)."""
        inner = self.expand(states)
        inner = inner * F.silu(self.gate(states)) if self.gate is not None else ACTIVATIONS[self.activation](inner)
        return F.dropout(inner, self.dropout, training=self.dropout > 0)


def feed_forward(states: Hidden, parts: FeedForward, norm: Norm, is_pre: bool) -> Hidden:
    """Run a feed-forward block.

    Args:
        states: h, (B, M, C).
        parts: of the feed-forward.
        norm: the norm; pre-norm that of the next block.
        is_pre: see `add_and_norm`.

    Returns:
        Norm(h + feed-forward), (B, M, C).
    """
    if not in_triton(states.exact):
        return normalized(states.exact + parts.contract(parts.inner(states.operand)), norm, is_pre)
    from adaptive_span.model.elementwise import fused

    if parts.activation in fused.ACTIVATIONS:
        branch = fused.feed_forward(states.operand, parts)
    else:
        branch = F.linear(parts.inner(states.operand), parts.contract.weight)
    return fused.add_and_norm(states.exact, branch, parts.contract.bias, norm, is_pre)  # which sums b₂'s gradient too


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
