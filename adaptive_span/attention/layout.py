"""How (B, T, …) lies in memory: on a GPU often as (T, B, …), so that the last positions of all rows are one matrix."""

import torch
from torch import Tensor


def puts_positions_first(device: torch.device) -> bool:
    """Return whether hidden states lie as (T, B, C) there."""
    return device.type == "cuda"


def is_positions_first(tensor: Tensor) -> bool:
    """Return whether (B, T, …) lies as (T, B, …)."""
    return tensor.dim() > 2 and tensor.stride(0) < tensor.stride(1)


def as_rows(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return (…, C) as the matrix of its rows, in the order in which they lie, or in which those of `like` do.

    It is a view if that is the order in which they lie.
    """
    first = is_positions_first(tensor if like is None else like)
    return (tensor.transpose(0, 1) if first else tensor).flatten(0, -2)


def out_of_rows(rows: Tensor, like: Tensor) -> Tensor:
    """Return the matrix of `as_rows` in the shape of `like` but for its last dimension: a view, laid out alike."""
    if is_positions_first(like):
        return rows.view(like.size(1), like.size(0), -1).transpose(0, 1)
    return rows.view(*like.shape[:-1], -1)


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor with its numbers in the order of those of `like`, which has the same shape."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def dense(tensor: Tensor) -> Tensor:
    """Return the tensor without gaps: as it lies, where it has none."""
    if is_positions_first(tensor):
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    return tensor.contiguous()


def cat_positions(tensors: list[Tensor]) -> Tensor:
    """Return (B, T, …) one behind another in the second dimension, laid out as the last of them."""
    if is_positions_first(tensors[-1]):
        return torch.cat([tensor.transpose(0, 1) for tensor in tensors]).transpose(0, 1)
    return torch.cat(tensors, dim=1)
