"""Measure how fast this machine multiplies matrices: what a training can reach at best."""

import hashlib
import time
from pathlib import Path

import torch

from adaptive_span.errors import UserError
from adaptive_span.hardware.gpu import describe
from adaptive_span.hardware.machine import processor
from adaptive_span.hardware.precision import tf32
from adaptive_span.storage import strict_json
from adaptive_span.storage.stored import lookup, read_json
from adaptive_span.storage.user_cache import user_cache

RATE = "operations_per_second"
REPEATS = 5


def matrix_peak(device: torch.device, precision: str) -> float:
    """Return the operations per second of a large matrix product. It is measured once per machine, and kept.

    Args:
        device: Where to multiply.
        precision: fp32, tf32 or bf16.
    """
    key = _key(device, precision)
    path = user_cache() / f"matrix-peak-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if known := _read(path):
        return known
    peak = measure(device, precision)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        strict_json.write({"machine": key, RATE: peak}, path)
    except (OSError, UserError):
        pass  # a home that cannot be written to: the next training measures again
    return peak


def measure(device: torch.device, precision: str) -> float:
    """Measure the operations per second of a large matrix product: the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    source = torch.Generator(device).manual_seed(0)  # leaves a training's own random numbers as they are
    left, right = torch.randn(2, size, size, device=device, generator=source).to(dtype)
    product = torch.empty_like(left)
    seconds = []
    with tf32(precision == "tf32"):
        for _ in range(REPEATS):
            _wait_for(device)
            started = time.perf_counter()
            torch.mm(left, right, out=product)
            _wait_for(device)
            seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def _read(path: Path) -> float | None:
    """Return a peak that was kept, None where there is none, or none that can be read."""
    try:
        peak: float = lookup(read_json(path, dict), RATE, float, path)
    except UserError:
        return None
    return peak if peak > 0 else None


def _key(device: torch.device, precision: str) -> str:
    """Return what a peak depends on: the chip, the threads of a process, the precision, the build of torch."""
    if device.type == "cuda":
        chip = describe(device).name
    else:
        chip = f"{processor()}, {device.type} with {torch.get_num_threads()} threads"
    return f"{chip}, {precision}, torch {torch.__version__}"


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
