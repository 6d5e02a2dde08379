"""Compile the elementwise kernels for a GPU that need not be there: `python -m tests.compile_elementwise CAPABILITY`.

Forward and backward in both precisions, which compiles and does not run; then other numbers of rows, which may compile
nothing more. Prints a line of JSON for each kernel.
"""

import json
import sys

import torch
from torch import nn

from adaptive_span.model.elementwise import adagrad, fused, kernels
from tests.compile_kernels import compile_for, resources

KERNELS = [value for name, value in vars(kernels).items() if name.endswith("_kernel")]


def step(dtype: torch.dtype, rows: int, size: int) -> None:
    def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype, requires_grad=True)

    for bias in (None, normal(size, dtype=torch.float32)):
        for norm, is_pre in ((nn.LayerNorm(size), False), (nn.RMSNorm(size, 1e-5), True)):
            residual = normal(rows, size, dtype=torch.float32)
            exact, operand = fused.add_and_norm(residual, normal(rows, size), bias, norm, is_pre)
            (exact.sum() + operand.float().sum()).backward()
    words = torch.zeros(2, dtype=torch.int32)
    weights = normal(4 * size, size), normal(4 * size, dtype=torch.float32), normal(size, 4 * size)
    for power in fused.ACTIVATIONS.values():
        output = fused.FeedForwardFunction.apply(normal(rows, size), *weights, 0.4, words, power)
        output.float().sum().backward()
    tensors = [torch.zeros(rows, size)]
    adagrad.update(tensors, tensors, tensors, torch.ones(1), torch.tensor(0.1), 0.03, 1e-10)


def compiled() -> list:
    return [(kernel.__name__, found) for kernel in KERNELS for found in kernel.device_caches[0][0].values()]


def main() -> None:
    compile_for(int(sys.argv[1]))
    for dtype in (torch.bfloat16, torch.float32):
        step(dtype, 64, 256)
    before = len(compiled())
    for rows in (48, 1000, 1):
        step(torch.bfloat16, rows, 256)
    for name, kernel in compiled():
        registers, stack = resources(kernel.asm["cubin"])
        print(
            json.dumps(
                {"kernel": name, "registers": registers, "stack": stack, "loads": kernel.asm["ptx"].count("ld.global")}
            )
        )
    print(json.dumps({"before": before, "after": len(compiled())}))


if __name__ == "__main__":
    main()
