"""Residual, norm and feed-forward with the gradients written out, around the Triton kernels.

Shapes are in the letters of `adaptive_span.model.elementwise`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adaptive_span.attention.layout import as_rows, dense, laid_out_like, out_of_rows
from adaptive_span.attention.own_types import OwnTypes, uncompiled
from adaptive_span.model.elementwise import FeedForward, Hidden, in_autocast, kernels
from adaptive_span.model.norm import Norm

PROGRAMS = 2048  # that share the rows of a norm in the backward pass: about as many as a GPU runs at once
LEAST_ROWS = 8  # of each of them, so that their sums are few beside what they read
TILE = {"ROWS": 4, "COLUMNS": 512}  # of what ReLU sees, and of its gradient
ROW_PROGRAMS = 128  # that share the rows of that gradient
ACTIVATIONS = {"relu": 1, "relu2": 2}  # powers of ReLU: what a gradient needs can be had from the output


@uncompiled
def add_and_norm(residual: Tensor, branch: Tensor, branch_bias: Tensor | None, norm: Norm, is_pre: bool) -> Hidden:
    """Return Norm(residual + branch + branch_bias), exact as the norm's weight is, and as an operand like the branch.

    (…, C) all, but branch_bias (C,). Pre-norm the sum itself is what is exact.
    """
    bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
    is_kept, is_centered = torch.is_grad_enabled(), isinstance(norm, nn.LayerNorm)
    inputs = residual, branch, branch_bias, norm.weight, bias
    return Hidden(*AddAndNorm.apply(*inputs, norm.eps, is_kept, is_pre, is_centered))


@uncompiled
def feed_forward(operand: Tensor, parts: FeedForward) -> Tensor:
    """Return W₂ dropout(f(W₁ x + b₁)), (…, C) → (…, C), of an f in `ACTIVATIONS`."""
    words = random_words(operand.device) if parts.dropout else None
    operand, expand, contract = map(in_autocast, (operand, parts.expand.weight, parts.contract.weight))
    power = ACTIVATIONS[parts.activation]
    output: Tensor = FeedForwardFunction.apply(
        operand, expand, parts.expand.bias, contract, parts.dropout, words, power
    )
    return output


def random_words(device: torch.device) -> Tensor:
    """Draw two words, (2,), from torch's generator on the device: activation checkpointing finds the same again."""
    return torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=device)


class AddAndNorm(OwnTypes):
    """Add, normalize and cast in one pass over what is read and written, forward and backward.

    Kept for the backward pass are z = (x − mean) · rstd, as precise as the branch, and rstd. An RMSNorm has no mean and
    no bias.
    """

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,  # (…, C)
        branch: Tensor,  # (…, C)
        branch_bias: Tensor | None,  # (C,)
        weight: Tensor,  # (C,)
        bias: Tensor | None,  # (C,)
        eps: float,
        is_kept: bool,  # what the backward pass reads
        is_pre: bool,  # whether the exact output is the sum
        is_centered: bool,  # whether the mean is taken away
    ) -> tuple[Tensor, Tensor]:
        """Return the normalized sum, exact and as an operand, (…, C) both; pre-norm the first is the sum."""
        residual = dense(residual)
        branch = laid_out_like(branch, residual)
        size, rows = residual.size(-1), residual.numel() // residual.size(-1)
        exact = torch.empty_like(residual, dtype=weight.dtype)
        operand = torch.empty_like(branch) if is_pre or branch.dtype != weight.dtype else None
        normalized = torch.empty_like(branch) if is_kept else None
        rstd = weight.new_empty(rows, dtype=torch.float32) if is_kept else None
        launch(
            kernels.norm_forward_kernel, (rows,), residual=residual, branch=branch, branch_bias=branch_bias,
            weight=weight, bias=bias, hidden=exact, operand=operand, normalized=normalized, rstd=rstd, eps=eps,
            IS_PRE=is_pre, IS_CENTERED=is_centered, **columns(size, each=8),
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.types = residual.dtype, None if branch_bias is None else branch_bias.dtype
        ctx.kind = is_pre, is_centered
        ctx.save_for_backward(normalized, rstd, weight)
        return exact, exact.detach() if operand is None else operand  # two, whose gradients come apart

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_operand: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs, of those of both outputs."""
        normalized, rstd, weight = ctx.saved_tensors
        residual_type, branch_bias_type = ctx.types
        is_pre, is_centered = ctx.kind
        grad, grad_operand = (None if x is None else laid_out_like(x, normalized) for x in (grad, grad_operand))
        size, rows, sums = len(weight), len(rstd), 2 if branch_bias_type is None else 3
        programs = max(1, min(PROGRAMS, rows // LEAST_ROWS))
        partial = rstd.new_empty(sums, programs, size)
        grad_residual = torch.empty_like(normalized, dtype=residual_type)
        grad_branch = grad_residual if normalized.dtype == residual_type else torch.empty_like(normalized)
        launch(
            kernels.norm_backward_kernel, (programs,), grad_hidden=grad, grad_operand=grad_operand,
            normalized=normalized, rstd=rstd, weight=weight, grad_residual=grad_residual,
            grad_branch=None if grad_branch is grad_residual else grad_branch, partial=partial, rows=rows, SUMS=sums,
            IS_PRE=is_pre, IS_CENTERED=is_centered, **columns(size, each=16),
        )  # fmt: skip
        grad_weight, grad_bias, *grad_branch_bias = partial.sum(1).unbind()
        return (
            grad_residual,
            grad_branch,
            grad_branch_bias[0].to(branch_bias_type) if grad_branch_bias else None,
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype) if is_centered else None,
            *[None] * 4,
        )


class FeedForwardFunction(OwnTypes):
    """Make both products and, in place, what is between them: ReLU to a power, and dropout.

    Kept for the backward pass is what the second product reads: it is zero where ReLU or dropout took something away.
    The second bias is added by the norm.
    """

    @staticmethod
    def forward(
        ctx: Any,
        operand: Tensor,  # (…, C)
        expand: Tensor,  # (F, C)
        expand_bias: Tensor,  # (F,)
        contract: Tensor,  # (C, F)
        dropout: float,
        words: Tensor | None,  # (2,)
        power: int = 1,  # 1 or 2
    ) -> Tensor:
        """Return W₂ dropout(ReLU(W₁ x + b₁)^power), (…, C)."""
        rows = as_rows(operand)  # (R, C)
        inner = torch.mm(rows, expand.t())  # (R, F)
        threshold = min(round(dropout * 2**16), 2**16 - 1)  # of 16 random bits: what lies below is dropped
        scale = 1 / (1 - threshold / 2**16)  # of the rate that is applied
        length, size = inner.shape
        grid = -(-length // (2 * TILE["ROWS"])), -(-size // TILE["COLUMNS"])
        launch(
            kernels.relu_dropout_kernel, grid, inner=inner, bias=expand_bias, words=words, rows=length,
            threshold=threshold, scale=scale, SIZE=size, IS_SQUARED=power == 2, num_warps=4, **TILE,
        )  # fmt: skip
        ctx.scale, ctx.bias_type, ctx.is_squared = scale, expand_bias.dtype, power == 2
        ctx.save_for_backward(operand, expand, contract, inner)
        return out_of_rows(torch.mm(inner, contract.t()), operand)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs, of that of the output, (…, C)."""
        operand, expand, contract, inner = ctx.saved_tensors
        rows, grad = as_rows(operand), as_rows(grad, operand)  # (R, C) both
        grad_contract = torch.mm(grad.t(), inner)  # (C, F)
        grad_inner = torch.mm(grad, contract)  # (R, F)
        length, size = inner.shape
        programs = max(1, min(ROW_PROGRAMS, length // TILE["ROWS"]))
        partial = inner.new_empty(programs, size, dtype=torch.float32)
        launch(
            kernels.relu_dropout_backward_kernel, (-(-size // TILE["COLUMNS"]), programs), grad=grad_inner,
            inner=inner, partial=partial, rows=length, scale=ctx.scale, SIZE=size, IS_SQUARED=ctx.is_squared,
            num_warps=4, **TILE,
        )  # fmt: skip
        return (
            out_of_rows(torch.mm(grad_inner, expand), operand),
            torch.mm(grad_inner.t(), rows),  # (F, C)
            partial.sum(0).to(ctx.bias_type),
            grad_contract,
            *[None] * 3,
        )


def columns(size: int, each: int) -> dict[str, int]:
    """Return the constants of kernels that hold a row of `size` numbers at once, `each` of them per thread."""
    padded = max(16, 1 << (size - 1).bit_length())
    return {"SIZE": size, "COLUMNS": padded, "num_warps": min(16, max(1, padded // (32 * each)))}


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Launch a kernel on the GPU that its tensors are on."""
    tensor = next(value for value in arguments.values() if isinstance(value, Tensor))
    with torch.cuda.device_of(tensor):
        kernel[grid](**arguments, enable_fp_fusion=True)
