"""What a model keeps of earlier positions: hidden states in training, keys and values (a KV cache) in inference.

A cache is handed to the model and returned by it. Nothing of the text is kept in the module.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor

from adaptive_span.config.model_schema import ModelConfig

CACHE_STEP = 64  # tokens: a cache holds the longest span rounded up, and one step more for a span to grow into


class Cache(ABC):
    """Hold what all layers of a model keep of the positions before a block."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """Return all that is kept, layer by layer."""

    def sizes(self) -> list[tuple[int, ...]]:
        """Return the shape of each tensor."""
        return [tuple(tensor.shape) for tensor in self.tensors()]

    def copy_(self, other: Self) -> None:
        """Take the contents of a cache of the same sizes, in place."""
        torch._foreach_copy_(self.tensors(), other.tensors())

    def zero_(self) -> None:
        """Forget all that was read, in place: zeros stand for positions that are not known."""
        torch._foreach_zero_(self.tensors())


@dataclass(frozen=True)
class HiddenStateCache(Cache):
    """Keep the inputs of every layer, for training: keys and values are projected from them again in each step.

    Args:
        layers: hidden states of each layer, detached, (B, T, C), as precise as they are multiplied. What a cache does
            not hold counts as zero hidden states.
    """

    layers: list[Tensor]

    def tensors(self) -> list[Tensor]:
        """Return all hidden states."""
        return self.layers


@dataclass(frozen=True)
class KeyValueCache(Cache):
    """Keep keys and values, for inference without gradients: valid while neither weights nor span bounds change.

    Args:
        layers: of each layer and group of heads, keys and values (B, T, h, 2, D); of a layer that has read nothing, an
            empty list.
    """

    layers: list[list[Tensor]]

    def tensors(self) -> list[Tensor]:
        """Return the keys and values of all groups."""
        return [group for layer in self.layers for group in layer]


AnyCache = TypeVar("AnyCache", HiddenStateCache, KeyValueCache)


def cache_length(config: ModelConfig, span_bounds: Sequence[int]) -> int:
    """Return how many tokens a layer's cache keeps: as far as its longest head sees, and some to spare.

    Args:
        config: of which `trim_cache` and `max_span` count.
        span_bounds: tokens, of each head of the layer.
    """
    if not config.trim_cache:
        return config.max_span
    return min(-(-max(span_bounds) // CACHE_STEP) * CACHE_STEP + CACHE_STEP, config.max_span)
