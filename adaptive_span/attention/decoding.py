"""Attention from one token of each text on a CPU, in C++: each head keeps and reads as many tokens as it sees."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaptive_span.attention import MemoryKeysValues
from adaptive_span.attention.span import log_soft_mask
from adaptive_span.hardware import cpp

SOURCE = Path(__file__).with_name("decoding.cpp")


class Head(ctypes.Structure):
    """Describe a head of a text to `decoding.cpp`, which explains the fields."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("ring", "log_mask")),
        *((name, ctypes.c_int64) for name in ("span", "row", "index")),
    ]


class Layer(ctypes.Structure):
    """Describe a layer to `decoding.cpp`, which explains the fields."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("heads", "position", "memory_key", "memory_value")),
        *((name, ctypes.c_int64) for name in ("count", "num_heads", "size", "longest", "memory")),
    ]


def runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether this computes there, in that type."""
    return device.type == "cpu" and dtype == torch.float32 and cpp.library(SOURCE) is not None


@dataclass(frozen=True)
class DecodedLayer:
    """Say what the heads of a layer attend with, beside keys and values.

    Attributes:
        bounds: tokens that each head sees, (H,).
        position_embedding: one learned vector per distance, oldest first, (D, L).
        spans: z of each head in tokens, (H,); None where the bounds are exact.
        ramp: R, in tokens.
        memory: persistent keys (H, D, N) and values (H, N, D), or None.
        rows: B, the texts.
    """

    bounds: Sequence[int]
    position_embedding: Tensor
    spans: Tensor | None
    ramp: int
    memory: MemoryKeysValues | None
    rows: int

    def log_masks(self, heads: Sequence[int], length: int) -> Tensor | None:
        """Return log m(d) of these heads at d = `length` … 1, (h, length); None where the bounds are exact."""
        if self.spans is None:
            return None
        return log_soft_mask(self.spans[list(heads)], self.ramp, length).to(self.position_embedding.dtype)


class HeadRings:
    """Hold the last keys and values of every head of a layer, each in a ring as long as its span."""

    def __init__(self, layer: DecodedLayer):
        self.bounds, self.read = (bounds := layer.bounds), 0
        self.order = list(range(len(bounds)))  # of the heads, in all that is handed in and out
        position_embedding, rows = layer.position_embedding, layer.rows
        size, longest = position_embedding.size(0), max(bounds)
        self.rings = [position_embedding.new_zeros(rows, 2, bound, size) for bound in bounds]
        self._position = position_embedding[:, -longest:].t().contiguous()  # (longest, D)
        masks = layer.log_masks(self.order, longest)  # (H, longest)
        self._masks = [] if masks is None else [mask[-n:].clone() for mask, n in zip(masks, bounds, strict=True)]
        key, value = layer.memory or (None, None)
        self._memory = None if key is None else key.transpose(1, 2).contiguous(), value  # (H, N, D) both
        heads = [self._describe(row, index) for row in range(rows) for index in range(len(bounds))]
        self._heads = (Head * len(heads))(*sorted(heads, key=lambda head: -head.span))
        self._layer = Layer(
            ctypes.addressof(self._heads), self._position.data_ptr(), *map(_address, self._memory), len(heads),
            len(bounds), size, longest, 0 if value is None else value.size(1),
        )  # fmt: skip
        library = cpp.library(SOURCE)
        assert library is not None
        self._decode = library.decode
        self._decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]

    def _describe(self, row: int, index: int) -> Head:
        mask = _address(self._masks[index]) if self._masks else None
        return Head(self.rings[index][row].data_ptr(), mask, self.bounds[index], row, index)

    @property
    def nbytes(self) -> int:
        """Return what keys and values take."""
        return sum(ring.nbytes for ring in self.rings)

    def fill(self, keys_values: Tensor) -> None:
        """Take the keys and values of the last tokens, (B, T, 2, H, D), oldest first; zeros stand for those before."""
        self.read = 0
        for index, ring in enumerate(self.rings):
            known = keys_values[:, -ring.size(2) :, :, index].transpose(1, 2)  # (B, 2, T, D)
            ring.zero_()
            ring[:, :, ring.size(2) - known.size(2) :] = known

    def attend(self, projected: Tensor) -> Tensor:
        """Attend to all that the rings hold, then put the present tokens in the place of the oldest ones.

        Args:
            projected: of the present tokens queries, times 1 / √D, keys and values, (B, 3·H·D).

        Returns:
            (B, H·D).
        """
        output = torch.empty_like(projected[:, : projected.size(1) // 3], memory_format=torch.contiguous_format)
        projected = projected.contiguous()
        self._decode(ctypes.addressof(self._layer), projected.data_ptr(), output.data_ptr(), self.read)
        self.read += 1
        return output


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
