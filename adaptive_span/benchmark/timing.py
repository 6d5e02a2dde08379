"""Measuring: seconds in turns, and the memory that a run adds at its height."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

Way = Callable[[], object]
CLEAR_REFS = Path("/proc/self/clear_refs")


def in_turns(repeats: int, **ways: Way) -> dict[str, float]:
    """Seconds of each way, the median of interleaved repeats after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    return 2 * size**3 / in_turns(10, product=lambda: left @ right)["product"]


def memory(device: torch.device, way: Way, make: Callable[..., Way], *arguments: Any) -> float | None:
    """MiB that one run adds at its height: on a GPU of this process, on a CPU of a fresh one, which makes its own.

    None on a CPU whose system does not count it: only Linux does, in /proc."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not CLEAR_REFS.exists():
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_height, make, *arguments).result()


def _height(make: Callable[..., Way], *arguments: Any) -> float:
    way = make(*arguments)
    before = status("VmRSS")
    CLEAR_REFS.write_text("5")  # the height is counted from here on
    way()
    return status("VmHWM") - before


def status(key: str) -> float:
    """Of this process, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 2**10
