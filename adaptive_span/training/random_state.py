"""The random numbers of a process: start them, and keep their state, so that a resumed run draws the same ones."""

import random
from typing import Any

import numpy as np
import torch


def seed(number: int) -> None:
    """Start every generator that this process may draw from at a fixed state."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of those generators, as a checkpoint can hold it."""
    algorithm, words, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(np.asarray(words).astype(np.int64)), position, has_gauss, cached),
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put those generators back to where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
    algorithm, words, *rest = state["numpy"]
    np.random.set_state((algorithm, words.numpy().astype(np.uint32), *rest))
