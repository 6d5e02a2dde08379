"""Adagrad's update of all tensors by one kernel, which finds them by their addresses.

P tensors, N blocks that they are cut into. Each number of a parameter, its gradient and its sum is read once.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from adaptive_span.model.elementwise import kernels
from adaptive_span.model.elementwise.fused import launch

BLOCK = 2048  # numbers of a program


def update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    sums: Sequence[Tensor],
    norms: Tensor,
    rate: Tensor | float,
    clip: float,
    eps: float,
) -> None:
    """Update the parameters and the sums in place; see `ClippedAdagrad`.

    norms: (P,), of the gradients. All tensors are fp32 and as dense in memory as autograd makes gradients.
    """
    device = norms.device
    if not isinstance(rate, Tensor):
        rate = torch.full((), rate, device=device)
    fixed, owners, starts = blocks(
        tuple(addresses(params)), tuple(addresses(sums)), tuple(map(Tensor.numel, params)), device
    )
    # Gradients are elsewhere in each step. Numbers to add travel as arguments of the launch, and so into a graph.
    places = torch.zeros(len(grads), dtype=torch.int64, device=device)
    torch._foreach_add_(list(places.unbind()), addresses(grads))
    launch(
        kernels.adagrad_kernel, (len(owners),), weights=fixed[0], grads=places, sums=fixed[1], norms=norms,
        lengths=fixed[2], owners=owners, starts=starts, learning_rate=rate, clip=clip, eps=eps, BLOCK=BLOCK,
        num_warps=4,
    )  # fmt: skip


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Return where in memory they begin."""
    return [tensor.data_ptr() for tensor in tensors]


@functools.cache  # a graph goes on reading it
def blocks(
    params: tuple[int, ...], sums: tuple[int, ...], lengths: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return addresses and lengths, (3, P); and of each block its tensor and its first number there, (N,) both."""
    fixed = torch.tensor([params, sums, lengths])
    counts = (fixed[2] + BLOCK - 1) // BLOCK
    owners = torch.arange(len(lengths)).repeat_interleave(counts)  # (N,)
    starts = (torch.arange(len(owners)) - (counts.cumsum(0) - counts)[owners]) * BLOCK
    return fixed.to(device), owners.to(device), starts.to(device)
