"""The Triton kernels of what surrounds the matrix products. Sums are made in fp32 and in a fixed order.

R rows, SIZE numbers in each, P programs. Tensors are contiguous. None stands for a tensor that is not wanted.
"""

import triton
import triton.language as tl

# Nothing is compiled anew for another batch.
compiled = triton.jit(do_not_specialize=["rows", "threshold"])


@compiled
def norm_forward_kernel(
    residual, branch, branch_bias, weight, bias, hidden, operand, normalized, rstd, eps,
    SIZE: tl.constexpr, COLUMNS: tl.constexpr, IS_PRE: tl.constexpr, IS_CENTERED: tl.constexpr,
):  # fmt: skip
    """Compute Norm(residual + branch + branch_bias) of one row, exact and as an operand; pre-norm, exact is the sum.

    A norm that is not centered is an RMSNorm. For the backward pass, store what weight and bias are applied to, and the
    factor that it was scaled by.
    """
    row, c = tl.program_id(0).to(tl.int64), tl.arange(0, COLUMNS)
    inside = c < SIZE
    at = row * SIZE + c
    x = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    if branch_bias is not None:
        x += tl.load(branch_bias + c, mask=inside, other=0.0).to(tl.float32)
    centered = x
    if IS_CENTERED:
        centered = tl.where(inside, x - tl.sum(x, 0) / SIZE, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centered * centered, 0) / SIZE + eps)
    z = centered * scale
    y = z * tl.load(weight + c, mask=inside, other=0.0)
    if bias is not None:
        y += tl.load(bias + c, mask=inside, other=0.0)
    exact = x if IS_PRE else y
    tl.store(hidden + at, exact.to(hidden.dtype.element_ty), mask=inside)
    if operand is not None:
        tl.store(operand + at, y.to(operand.dtype.element_ty), mask=inside)
    if normalized is not None:
        tl.store(normalized + at, z.to(normalized.dtype.element_ty), mask=inside)
        tl.store(rstd + row, scale)


@compiled
def norm_backward_kernel(
    grad_hidden, grad_operand, normalized, rstd, weight, grad_residual, grad_branch, partial, rows,
    SIZE: tl.constexpr, COLUMNS: tl.constexpr, SUMS: tl.constexpr, IS_PRE: tl.constexpr, IS_CENTERED: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of every P-th row, and those of weight, bias and the branch's bias, (SUMS, P, SIZE).

    These are summed over the rows of a program. Without a bias of the branch, SUMS is 2.

    With y = z · weight + bias and z = (x − mean) · rstd: dx = rstd · (dz − mean(dz) − z · mean(dz · z)). An RMSNorm
    takes no mean(dz) away. Pre-norm the gradient of the sum is added.
    """
    program, programs, c = tl.program_id(0), tl.num_programs(0), tl.arange(0, COLUMNS)
    inside, size = c < SIZE, tl.full([], SIZE, tl.int64)
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    to_weight = tl.zeros([COLUMNS], tl.float32)
    to_bias = tl.zeros([COLUMNS], tl.float32)
    to_branch_bias = tl.zeros([COLUMNS], tl.float32)
    for row in range(program, rows, programs):
        at = row * size + c
        g = tl.zeros([COLUMNS], tl.float32)
        to_sum = tl.zeros([COLUMNS], tl.float32)
        if grad_hidden is not None:
            to_sum += tl.load(grad_hidden + at, mask=inside, other=0.0).to(tl.float32)
        if not IS_PRE:
            g += to_sum
        if grad_operand is not None:
            g += tl.load(grad_operand + at, mask=inside, other=0.0).to(tl.float32)
        z = tl.load(normalized + at, mask=inside, other=0.0).to(tl.float32)
        to_weight += g * z
        to_bias += g
        g *= w
        dz = g - z * (tl.sum(g * z, 0) / SIZE)
        if IS_CENTERED:
            dz -= tl.sum(g, 0) / SIZE
        dx = dz * tl.load(rstd + row)
        if IS_PRE:
            dx += to_sum
        if SUMS == 3:
            to_branch_bias += dx
        tl.store(grad_residual + at, dx.to(grad_residual.dtype.element_ty), mask=inside)
        if grad_branch is not None:
            tl.store(grad_branch + at, dx.to(grad_branch.dtype.element_ty), mask=inside)
    at = program * SIZE + c
    tl.store(partial + at, to_weight, mask=inside)
    tl.store(partial + programs * SIZE + at, to_bias, mask=inside)
    if SUMS == 3:
        tl.store(partial + 2 * programs * SIZE + at, to_branch_bias, mask=inside)


@compiled
def relu_dropout_kernel(
    inner, bias, words, rows, threshold, scale, SIZE: tl.constexpr, IS_SQUARED: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute dropout(ReLU(inner + bias)), or of its square, in place, of two tiles, one below the other.

    Two numbers share a hash of 32 bits: each is dropped where its half of the bits lies below the threshold. What is
    not a number stays so.
    """
    r, c = tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    upper, lower = tl.program_id(0) * (2 * ROWS) + r, tl.program_id(0) * (2 * ROWS) + ROWS + r
    b = tl.load(bias + c, mask=c < SIZE, other=0.0).to(tl.float32)[None, :]
    x, y = tile(inner, upper, c, rows, SIZE) + b, tile(inner, lower, c, rows, SIZE) + b
    drop_x, drop_y = x <= 0, y <= 0
    if words is not None:
        bits = hashed((tl.program_id(0) * ROWS + r)[:, None] * SIZE + c[None, :], words)
        drop_x |= (bits & 0xFFFF).to(tl.int32) < threshold
        drop_y |= (bits >> 16).to(tl.int32) < threshold
    if IS_SQUARED:
        x, y = x * x, y * y
    put_tile(inner, tl.where(drop_x, 0.0, x * scale), upper, c, rows, SIZE)
    put_tile(inner, tl.where(drop_y, 0.0, y * scale), lower, c, rows, SIZE)


@triton.jit
def tile(tensor, r, c, rows, SIZE: tl.constexpr):
    """Load a tile in fp32, (r, c)."""
    inside = (r < rows)[:, None] & (c < SIZE)[None, :]
    return tl.load(tensor + r.to(tl.int64)[:, None] * SIZE + c[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def put_tile(tensor, values, r, c, rows, SIZE: tl.constexpr):
    """Store a tile, (r, c)."""
    inside = (r < rows)[:, None] & (c < SIZE)[None, :]
    at = r.to(tl.int64)[:, None] * SIZE + c[None, :]
    tl.store(tensor + at, values.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def hashed(counter, words):
    """Return 32 random bits for each counter, from two random words."""
    x = counter.to(tl.uint32, bitcast=True) + tl.load(words).to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x ^= tl.load(words + 1).to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = (x ^ (x >> 16)) * 0x9E3779B1
    return x ^ (x >> 15)


@compiled
def relu_dropout_backward_kernel(
    grad, inner, partial, rows, scale, SIZE: tl.constexpr, IS_SQUARED: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute the gradient in place, and its sums over the rows of a program, (P, SIZE): the gradient of the bias.

    It is zero where `inner` is: there ReLU or dropout took something away. Of a square, inner = scale · x².
    """
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(tl.program_id(1) * ROWS, rows, tl.num_programs(1) * ROWS):
        r = start + tl.arange(0, ROWS)
        kept = tile(inner, r, c, rows, SIZE)
        slope = 2.0 * tl.sqrt(kept * scale) if IS_SQUARED else scale
        g = tl.where(kept > 0, tile(grad, r, c, rows, SIZE) * slope, 0.0)
        total += g
        put_tile(grad, g, r, c, rows, SIZE)
    tl.store(partial + tl.program_id(1) * SIZE + c, tl.sum(total, 0), mask=c < SIZE)


@compiled
def adagrad_kernel(weights, grads, sums, norms, lengths, owners, starts, learning_rate, clip, eps, BLOCK: tl.constexpr):
    """Update BLOCK numbers, of the tensor and from the place in it that tables name for each program.

    `weights`, `grads` and `sums` hold each tensor's address.
    """
    tensor, start = tl.load(owners + tl.program_id(0)), tl.load(starts + tl.program_id(0))
    i = start + tl.arange(0, BLOCK)
    inside = i < tl.load(lengths + tensor)
    param = tl.load(weights + tensor).to(tl.pointer_type(tl.float32)) + i
    grad = tl.load(grads + tensor).to(tl.pointer_type(tl.float32)) + i
    total = tl.load(sums + tensor).to(tl.pointer_type(tl.float32)) + i
    rate = tl.load(learning_rate) * tl.minimum(clip / (tl.load(norms + tensor) + eps), 1.0)
    g = tl.load(grad, mask=inside, other=0.0)
    s = tl.load(total, mask=inside, other=0.0) + g * g
    p = tl.load(param, mask=inside, other=0.0) - rate * (g / (tl.sqrt(s) + eps))
    tl.store(total, s, mask=inside)
    tl.store(param, p, mask=inside)
