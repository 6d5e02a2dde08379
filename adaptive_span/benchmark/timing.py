"""Time workloads in turns, and measure the memory that one adds at its peak."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

Workload = Callable[[], object]
CLEAR_REFS = Path("/proc/self/clear_refs")


def time_interleaved(repeats: int, **workloads: Workload) -> dict[str, float]:
    """Return the seconds of each workload: the median of interleaved repeats, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for repeat in range(repeats + 1):
        for name, workload in workloads.items():
            started = time.perf_counter()
            workload()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(
    device: torch.device, workload: Workload, make: Callable[..., Workload], *arguments: Any
) -> float | None:
    """Return the MiB that one run adds at its peak.

    On a GPU it is that of this process; on a CPU that of a fresh process, which makes its own workload. None on a CPU
    whose system does not count it: only Linux does, in /proc.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        workload()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not CLEAR_REFS.exists():
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_peak_in_this_process, make, *arguments).result()


def _peak_in_this_process(make: Callable[..., Workload], *arguments: Any) -> float:
    workload = make(*arguments)
    before = process_status("VmRSS")
    CLEAR_REFS.write_text("5")  # the peak is counted from now on
    workload()
    return process_status("VmHWM") - before


def process_status(key: str) -> float:
    """Return an entry of /proc/self/status, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 2**10
