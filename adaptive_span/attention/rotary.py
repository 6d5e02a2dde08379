"""Rotary positions (arXiv 2104.09864): queries and keys are turned by angles that grow with their position."""

import torch
from torch import Tensor


def rotate(vectors: Tensor, first: int = 0, base: float = 10000.0) -> Tensor:
    """Turn queries or keys, so that their products depend on the distance between them.

    The first half of a vector is turned against the second one, as most models do.

    Args:
        vectors: (B, H, M, D), D even.
        first: the position of the first of them in its text.
        base: the slowest angle takes about 2π · base tokens for a turn.

    Returns:
        (B, H, M, D).

    Raises:
        ValueError: D is odd.
    """
    block, size = vectors.shape[2:]
    if size % 2:
        raise ValueError(f"rotary positions turn pairs of numbers, and a head of {size} has an odd one")
    device = vectors.device
    positions = torch.arange(first, first + block, device=device, dtype=torch.float64)  # far ones need the digits
    speeds = base ** -(torch.arange(0, size, 2, device=device, dtype=torch.float64) / size)
    angles = positions[:, None] * speeds  # (M, D / 2)
    cos, sin = angles.cos().to(vectors.dtype), angles.sin().to(vectors.dtype)
    near, far = vectors.chunk(2, dim=3)
    return torch.cat([near * cos - far * sin, far * cos + near * sin], dim=3)
