"""The token stream as rows and blocks, with a cursor that can be saved.

A split of n tokens is cut into B equal contiguous rows; a step reads the same M columns, and the one after,
of every row.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive_span.errors import UserError


def rows(tokens: np.ndarray, batch_size: int, block_size: int, split: str) -> np.ndarray:
    """(n,) → (B, n // B), a view; every row has room for a block and the token after it."""
    length = len(tokens) // batch_size
    if length <= block_size:
        most = len(tokens) // (block_size + 1)
        advice = f"at most {most} rows with train.batch_size (in evaluate.py, batch_size), " if most else ""
        raise UserError(
            f"the {split} split holds {len(tokens):,} tokens, which in {batch_size} rows makes {length:,} a row: "
            f"shorter than a block of {block_size} and the token after it; "
            f"give more text, {advice}or a shorter model.block_size"
        )
    return tokens[: batch_size * length].reshape(batch_size, length)


def columns(rows: np.ndarray, start: int, block_size: int, device: torch.device) -> Tensor:
    """Return the block that starts at `start` and the token after it, (B, M + 1), int64."""
    block = torch.from_numpy(rows[:, start : start + block_size + 1].astype(np.int64))
    return block.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else block


def passes_once(rows: np.ndarray, block_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """All whole blocks of the rows, from the first on."""
    for start in range(0, rows.shape[1] - block_size, block_size):
        block = columns(rows, start, block_size, device)
        yield block[:, :-1], block[:, 1:]


class Stream:
    """Endless training blocks. At the end of the rows it starts again at a random column of the first block."""

    def __init__(self, rows: np.ndarray, block_size: int, seed: int, device: torch.device):
        self.rows, self.block_size, self.device = rows, block_size, device  # (b, length): this process's rows
        self.position = 0
        self.generator = torch.Generator().manual_seed(seed)  # the same in every process

    def next(self) -> tuple[Tensor, bool]:
        """Return a block and the token after it, (b, M + 1), and whether it does not continue the last block."""
        end = self.rows.shape[1] - self.block_size
        jumped = self.position >= end
        while self.position >= end:
            self.position = int(torch.randint(self.block_size, (), generator=self.generator))
        block = columns(self.rows, self.position, self.block_size, self.device)
        self.position += self.block_size
        return block, jumped

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        self.generator.set_state(state["generator"])
