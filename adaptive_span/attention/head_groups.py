"""Heads of similar span share a group: one projection, and one band or launch, as long as its longest head.

A group per head would mean many small operations, one group for all the cost of the longest head for each.
"""

import functools
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptive_span.attention.own_types import OwnTypes

SHORTEST_TILE, LONGEST_TILE = 64, 256  # queries
WASTE = 1.3  # a group's longest head costs at most this many times what its shortest one would cost alone


class HeadGroup(NamedTuple):
    """Name some heads of a layer, and how far back they look together."""

    heads: Sequence[int]  # their numbers in the layer
    span: int  # tokens before the present block


def group_heads(bounds: Sequence[int]) -> list[HeadGroup]:
    """Return the heads in groups of similar bounds, the shortest first.

    Args:
        bounds: tokens, of each head.

    Returns:
        Groups that hold each head once; the span of each is its largest bound.
    """
    groups: list[HeadGroup] = []
    shortest = 0
    for bound, alike in groupby(sorted(range(len(bounds)), key=bounds.__getitem__), key=bounds.__getitem__):
        heads = list(alike)
        if groups and bound + tile_size(bound) <= WASTE * (shortest + tile_size(shortest)):
            heads = [*groups.pop().heads, *heads]
        else:
            shortest = bound
        groups.append(HeadGroup(heads, bound))
    return groups


def tile_size(span: int) -> int:
    """Return the queries of a tile: more of them mean fewer calls, and more products outside the band."""
    tile = SHORTEST_TILE
    while tile < LONGEST_TILE and 4 * tile < span:
        tile *= 2
    return tile


def by_groups(tensor: Tensor, dim: int, groups: Sequence[HeadGroup]) -> Tensor:
    """Return the tensor with its heads, which are dimension `dim`, in the order of the groups."""
    return _reorder(tensor, dim, order_of(groups))


def out_of_groups(tensor: Tensor, dim: int, groups: Sequence[HeadGroup]) -> Tensor:
    """Return the tensor with its heads, which are dimension `dim`, in their own order again."""
    return _reorder(tensor, dim, _inverse(order_of(groups)))


def order_of(groups: Sequence[HeadGroup]) -> tuple[int, ...]:
    """Return the numbers of the heads, group by group."""
    return tuple(head for heads, _ in groups for head in heads)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _reorder(tensor: Tensor, dim: int, heads: tuple[int, ...]) -> Tensor:
    if heads == tuple(range(len(heads))):
        return tensor
    reordered: Tensor = HeadOrderFunction.apply(
        tensor, dim, order_on(tensor.device, heads), order_on(tensor.device, _inverse(heads))
    )
    return reordered


@functools.cache
def order_on(device: torch.device, heads: tuple[int, ...]) -> Tensor:
    """Return these numbers of heads on the device, where they stay: a step that was captured as a graph reads them."""
    with torch.inference_mode(False):  # whoever asks first: training may ask next
        return torch.tensor(heads, dtype=torch.int32, device=device)


class HeadOrderFunction(OwnTypes):
    """`index_select` whose backward is another `index_select`.

    Each head occurs once, so autograd's scatter-add is not needed.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, heads: Tensor, back: Tensor) -> Tensor:
        """Return the heads in the order `heads`; `back` is the inverse order. (H,) both, int32."""
        ctx.dim = dim
        ctx.save_for_backward(back)
        return tensor.index_select(dim, heads)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Put the gradient back in order."""
        return grad.index_select(ctx.dim, *ctx.saved_tensors), None, None, None
