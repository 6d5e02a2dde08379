"""Whether the host waits for a GPU."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def refused() -> Iterator[None]:
    """Raise where the host waits for the GPU. What was set before is set again at the end."""
    before = torch.cuda.get_sync_debug_mode()
    _set("error")
    try:
        yield
    finally:
        _set(before)


def _set(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")  # torch says so each time
        torch.cuda.set_sync_debug_mode(mode)
