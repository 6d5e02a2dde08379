"""Compile the fused kernels for GPUs that need not be there.

    python -m tests.compile_kernels CAPABILITY PRECISION SIZE…

A forward and a backward pass with heads of each size go all the way to each launch, which compiles and does not run.
With adaptive spans, dropout and persistent memory, and without any of them (`--all`: with some of them too); then again
with other spans, rows and groups of heads, which may compile nothing more. Prints a line of JSON for each kernel.
"""

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from adaptive_span.attention import SpanGeometry, fused
from adaptive_span.attention import fused_kernels as kernels
from adaptive_span.attention.context import HiddenStates, join

KERNELS = [getattr(kernels, name) for name in fused.TILES["fp32", 64]]


class Driver:
    """What triton asks of the GPU at a launch."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(capability: int) -> None:
    """From here on a launch compiles."""
    triton.runtime.driver.set_active(Driver(capability))
    run = JITFunction.run

    def warm_up(self: Any, *arguments: Any, warmup: bool, **named: Any) -> Any:
        return run(self, *arguments, warmup=True, **named)

    JITFunction.run = warm_up


def step(dtype: torch.dtype, head_size: int, parts: tuple[bool, ...], bounds: list[int], batch: int = 1) -> None:
    """Forward and backward, with or without adaptive spans, dropout, persistent memory."""
    adaptive, dropout, memory = parts
    heads, block = len(bounds), 16
    size = heads * head_size

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    weights, hidden = (normal(size, size), normal(size, size), normal(size, size)), normal(batch, block, size)
    context = HiddenStates(join(normal(batch, 64, size), hidden, max(bounds)), hidden, weights, num_heads=heads)
    spans = torch.zeros(heads, requires_grad=True) if adaptive else None
    memory_kv = (normal(heads, head_size, 16), normal(heads, 16, head_size)) if memory else None
    geometry = SpanGeometry(spans, 32, bounds)
    attended = fused.attend(context, normal(head_size, 1024), geometry, 0.3 if dropout else 0.0, memory_kv)
    attended.output.sum().backward()


def compiled() -> list[tuple[str, Any]]:
    return [(kernel.__name__, found) for kernel in KERNELS for found in kernel.device_caches[0][0].values()]


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and the bytes of its stack, to which it spills them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found, told
    return int(found[1]), int(found[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capability", type=int, help="80, 90, …")
    parser.add_argument("precision", choices=("bf16", "tf32", "fp32"))
    parser.add_argument("size", type=int, nargs="+")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    if arguments.precision == "tf32":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    compile_for(arguments.capability)
    combinations = list(itertools.product((True, False), repeat=3))
    combinations = combinations if arguments.all else [combinations[0], combinations[-1]]
    for size, combination in itertools.product(arguments.size, combinations):
        step(dtype, size, combination, [64, 1024])
    before = len(compiled())
    for size, bounds in itertools.product(arguments.size, ([64, 64], [1024, 256], [128, 448, 1024], [64] * 5)):
        step(dtype, size, combinations[0], bounds, batch=2)
    for name, kernel in compiled():
        registers, stack = resources(kernel.asm["cubin"])
        line = {"kernel": name, "shared": kernel.metadata.shared, "registers": registers, "stack": stack}
        print(json.dumps(line))
    print(json.dumps({"before": before, "after": len(compiled())}))


if __name__ == "__main__":
    main()
