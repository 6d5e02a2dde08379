"""The Triton kernels of fused attention, one forward and four backward; a program is most often a tile of one head in
one row.

A query m sees the key at position j through column c = j − m of `near`, its products with the position vectors, where
column S − d belongs to distance d. It sees the columns from S − reach to S − 1. Weights are powers of two, which is
what the hardware computes: exp(s) = 2^(s · log₂e).

B batch, H heads of the layer (those of a launch begin at `first`), M block, D head size, P the next power of two,
S span of the launch's longest head, T = S + M positions, N persistent vectors; q and k, queries and keys of a tile.

Tensors of queries, (B, H, M, …), are contiguous; `near` (B, h, M, S) too. Keys and values share their strides.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
FLOOR = tl.constexpr(1e-20)  # of the soft mask, as in `span.log_soft_mask`

# What changes with the spans makes no kernel be compiled anew: spans themselves are a tensor, a group's first head is
# not looked at, and its length for being a multiple of 16 alone, as `span.STEP` makes it, since other loads are slow.
compiled = triton.jit(do_not_specialize=["first", "batch", "threshold", "plane", "total"])


@triton.jit
def reach_of(z, ramp, span):
    """Of the launch's columns, how many this head sees: all those where its soft mask is not negative."""
    return span if z is None else tl.minimum(span, (ramp + 1 + z).to(tl.int32))


@triton.jit
def first_row(b, head, heads, block):
    return (b * heads + head).to(tl.int64) * block


@triton.jit
def rows(tensor, row, m, d, block, SIZE: tl.constexpr):
    """(q, P): a tile of queries, or of what has their shape."""
    inside = (m < block)[:, None] & (d < SIZE)[None, :]
    return tl.load(tensor + row * SIZE + m[:, None] * SIZE + d[None, :], mask=inside, other=0.0)


@triton.jit
def columns(tensor, j, d, length, stride_j, stride_d, SIZE: tl.constexpr):
    """(P, k): a tile of keys or values."""
    inside = (j < length)[None, :] & (d < SIZE)[:, None]
    return tl.load(tensor + d[:, None] * stride_d + j[None, :] * stride_j, mask=inside, other=0.0)


@triton.jit
def put_columns(tensor, tile, j, d, length, stride_j, stride_d, SIZE: tl.constexpr):
    inside = (j < length)[None, :] & (d < SIZE)[:, None]
    tl.store(tensor + d[:, None] * stride_d + j[None, :] * stride_j, tile.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def context_scores(q, k, near, m, j, block, span, reach):
    """(q, k), −inf where nothing is seen, in units of log 2."""
    column = j[None, :] - m[:, None]
    seen = (column >= span - reach) & (column < span) & (m < block)[:, None]
    scores = tl.dot(q, k, input_precision="ieee")
    scores += tl.load(near + m[:, None] * span + column, mask=seen, other=0.0).to(tl.float32)
    return tl.where(seen, scores * LOG2E, float("-inf"))


@triton.jit
def memory_scores(q, k, n, memory_size):
    return tl.where((n < memory_size)[None, :], tl.dot(q, k, input_precision="ieee") * LOG2E, float("-inf"))


@triton.jit
def masked(weights, m, j, z, ramp, span):
    """Times the soft mask. A logarithm of it among the scores would mean the same and cost more."""
    if z is not None:
        distance = span - (j[None, :] - m[:, None])
        weights *= tl.minimum((ramp + 1 + z - distance) * (1.0 / ramp), 1.0) + FLOOR
    return weights


@triton.jit
def random_words(words, row, m, block, plane):
    """Two of each query, (q,)."""
    low = tl.load(words + row + m, mask=m < block, other=0).to(tl.uint32, bitcast=True)
    high = tl.load(words + plane + row + m, mask=m < block, other=0).to(tl.uint32, bitcast=True)
    return low, high


@triton.jit
def kept(low, high, counter, threshold):
    """(q, k): which weights dropout leaves. Each query has two random words of its own; hashed with a counter of what
    it looks at (distances count up from 1, persistent vectors down from −1), they give the same answer in every kernel,
    whatever the tiles. Words as random as those need no more mixing than this, a tenth of what Philox would cost."""
    x = counter.to(tl.uint32, bitcast=True) + low[:, None]
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x ^= high[:, None]
    x = (x ^ (x >> 15)) * 0x846CA68B
    x ^= x >> 16
    return x.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def context_kept(low, high, m, j, span, threshold):
    return kept(low, high, span - (j[None, :] - m[:, None]), threshold)


@triton.jit
def memory_kept(low, high, n, threshold):
    return kept(low, high, -1 - n[None, :], threshold)


@compiled
def delta_kernel(
    grad, output, delta, total,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """For a tile of all `total` queries, the sum of grad · output: the mean of a query's gradients of its weights."""
    m, d = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, PADDED)
    g, o = rows(grad, 0, m, d, total, SIZE), rows(output, 0, m, d, total, SIZE)
    tl.store(delta + m, tl.sum(g.to(tl.float32) * o.to(tl.float32), 1), mask=m < total)


@compiled
def forward_kernel(
    query, key, value, near, memory_key, memory_value, spans, words, output, lse,
    first, heads, block, span, memory_size, ramp, threshold, scale, plane,
    stride_b, stride_h, stride_j, stride_d,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """`output` and the base-2 logarithm of each query's sum of weights, for a tile of queries."""
    start, slot, b = tl.program_id(0) * QUERIES, tl.program_id(1), tl.program_id(2)
    head, row = first + slot, first_row(b, first + slot, heads, block)
    m, d = start + tl.arange(0, QUERIES), tl.arange(0, PADDED)
    z = None if spans is None else tl.load(spans + head)
    reach = reach_of(z, ramp, span)
    q = rows(query, row, m, d, block, SIZE)
    if words is not None:
        low, high = random_words(words, row, m, block, plane)
    top = tl.full([QUERIES], -1e30, tl.float32)  # finite, so that a tile in which nothing is seen is no special case
    total = tl.zeros([QUERIES], tl.float32)
    found = tl.zeros([QUERIES, PADDED], tl.float32)

    if memory_key is not None:
        memory_key += head * SIZE * memory_size
        memory_value += head * SIZE * memory_size
        for at in range(0, memory_size, KEYS):
            n = at + tl.arange(0, KEYS)
            k = columns(memory_key, n, d, memory_size, 1, memory_size, SIZE)
            v = columns(memory_value, n, d, memory_size, SIZE, 1, SIZE)
            scores = memory_scores(q, k, n, memory_size)
            new_top = tl.maximum(top, tl.max(scores, 1))
            decay = tl.exp2(top - new_top)
            weights = tl.exp2(scores - new_top[:, None])
            total, top = total * decay + tl.sum(weights, 1), new_top
            if words is not None:
                weights = tl.where(memory_kept(low, high, n, threshold), weights, 0.0)
            found = found * decay[:, None] + tl.dot(weights.to(v.dtype), tl.trans(v), input_precision="ieee")

    key += b.to(tl.int64) * stride_b + slot * stride_h
    value += b.to(tl.int64) * stride_b + slot * stride_h
    near += first_row(b, slot, tl.num_programs(1), block) * span
    last = tl.minimum(start + QUERIES, block) - 1
    for at in range((start + span - reach) // KEYS * KEYS, last + span, KEYS):
        j = at + tl.arange(0, KEYS)
        k = columns(key, j, d, span + block, stride_j, stride_d, SIZE)
        v = columns(value, j, d, span + block, stride_j, stride_d, SIZE)
        scores = context_scores(q, k, near, m, j, block, span, reach)
        new_top = tl.maximum(top, tl.max(scores, 1))
        decay = tl.exp2(top - new_top)
        weights = masked(tl.exp2(scores - new_top[:, None]), m, j, z, ramp, span)
        total, top = total * decay + tl.sum(weights, 1), new_top
        if words is not None:
            weights = tl.where(context_kept(low, high, m, j, span, threshold), weights, 0.0)
        found = found * decay[:, None] + tl.dot(weights.to(v.dtype), tl.trans(v), input_precision="ieee")

    total = tl.where(m < block, total, 1.0)
    found *= (scale / total)[:, None]
    inside = (m < block)[:, None] & (d < SIZE)[None, :]
    place = output + row * SIZE + m[:, None] * SIZE + d[None, :]
    tl.store(place, found.to(output.dtype.element_ty), mask=inside)
    tl.store(lse + row + m, top + tl.log2(total), mask=m < block)


@compiled
def query_kernel(
    query, key, value, near, memory_key, memory_value, spans, words, grad, lse, delta, grad_query,
    first, heads, block, span, memory_size, ramp, threshold, scale, plane,
    stride_b, stride_h, stride_j, stride_d,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries, without what comes through `near`; and that of `near`, in its place."""
    start, slot, b = tl.program_id(0) * QUERIES, tl.program_id(1), tl.program_id(2)
    head, row = first + slot, first_row(b, first + slot, heads, block)
    m, d = start + tl.arange(0, QUERIES), tl.arange(0, PADDED)
    z = None if spans is None else tl.load(spans + head)
    reach = reach_of(z, ramp, span)
    q, g = rows(query, row, m, d, block, SIZE), rows(grad, row, m, d, block, SIZE)
    norm = tl.load(lse + row + m, mask=m < block, other=0.0)
    mean = tl.load(delta + row + m, mask=m < block, other=0.0)
    if words is not None:
        low, high = random_words(words, row, m, block, plane)
    found = tl.zeros([QUERIES, PADDED], tl.float32)

    if memory_key is not None:
        memory_key += head * SIZE * memory_size
        memory_value += head * SIZE * memory_size
        for at in range(0, memory_size, KEYS):
            n = at + tl.arange(0, KEYS)
            k = columns(memory_key, n, d, memory_size, 1, memory_size, SIZE)
            v = columns(memory_value, n, d, memory_size, SIZE, 1, SIZE)
            weights = tl.exp2(memory_scores(q, k, n, memory_size) - norm[:, None])
            grad_weights = tl.dot(g, v, input_precision="ieee") * scale
            if words is not None:
                grad_weights = tl.where(memory_kept(low, high, n, threshold), grad_weights, 0.0)
            grad_scores = weights * (grad_weights - mean[:, None])
            found += tl.dot(grad_scores.to(k.dtype), tl.trans(k), input_precision="ieee")

    key += b.to(tl.int64) * stride_b + slot * stride_h
    value += b.to(tl.int64) * stride_b + slot * stride_h
    near += first_row(b, slot, tl.num_programs(1), block) * span
    last = tl.minimum(start + QUERIES, block) - 1
    nearest = (start + span - reach) // KEYS * KEYS
    for at in range(start // KEYS * KEYS, nearest, KEYS):  # beyond the reach
        column = at + tl.arange(0, KEYS)[None, :] - m[:, None]
        nothing = tl.zeros([QUERIES, KEYS], near.dtype.element_ty)
        tl.store(near + m[:, None] * span + column, nothing, mask=(column >= 0) & (m < block)[:, None])
    for at in range(nearest, last + span, KEYS):
        j = at + tl.arange(0, KEYS)
        k = columns(key, j, d, span + block, stride_j, stride_d, SIZE)
        v = columns(value, j, d, span + block, stride_j, stride_d, SIZE)
        scores = context_scores(q, k, near, m, j, block, span, reach)
        weights = masked(tl.exp2(scores - norm[:, None]), m, j, z, ramp, span)
        grad_weights = tl.dot(g, v, input_precision="ieee") * scale
        if words is not None:
            keep = context_kept(low, high, m, j, span, threshold)
            grad_weights = tl.where(keep, grad_weights, 0.0)
        grad_scores = (weights * (grad_weights - mean[:, None])).to(k.dtype)
        found += tl.dot(grad_scores, tl.trans(k), input_precision="ieee")
        column = j[None, :] - m[:, None]
        inside = (column >= 0) & (column < span) & (m < block)[:, None]
        tl.store(near + m[:, None] * span + column, grad_scores, mask=inside)

    inside = (m < block)[:, None] & (d < SIZE)[None, :]
    place = grad_query + row * SIZE + m[:, None] * SIZE + d[None, :]
    tl.store(place, found.to(grad_query.dtype.element_ty), mask=inside)


@compiled
def key_value_kernel(
    query, key, value, near, spans, words, grad, lse, delta, grad_key, grad_value,
    first, heads, block, span, ramp, threshold, scale, plane,
    stride_b, stride_h, stride_j, stride_d, grad_stride_b, grad_stride_h, grad_stride_d,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, from all the queries that see some of them."""
    start, slot, b = tl.program_id(0) * KEYS, tl.program_id(1), tl.program_id(2)
    head, row = first + slot, first_row(b, first + slot, heads, block)
    j, d = start + tl.arange(0, KEYS), tl.arange(0, PADDED)
    z = None if spans is None else tl.load(spans + head)
    reach = reach_of(z, ramp, span)
    key += b.to(tl.int64) * stride_b + slot * stride_h
    value += b.to(tl.int64) * stride_b + slot * stride_h
    near += first_row(b, slot, tl.num_programs(1), block) * span
    k = columns(key, j, d, span + block, stride_j, stride_d, SIZE)
    v = columns(value, j, d, span + block, stride_j, stride_d, SIZE)
    found_key = tl.zeros([PADDED, KEYS], tl.float32)
    found_value = tl.zeros([PADDED, KEYS], tl.float32)

    earliest = tl.maximum(start - span + 1, 0) // QUERIES * QUERIES
    for at in range(earliest, tl.minimum(start + KEYS - span + reach, block), QUERIES):
        m = at + tl.arange(0, QUERIES)
        q, g = rows(query, row, m, d, block, SIZE), rows(grad, row, m, d, block, SIZE)
        norm = tl.load(lse + row + m, mask=m < block, other=0.0)
        mean = tl.load(delta + row + m, mask=m < block, other=0.0)
        scores = context_scores(q, k, near, m, j, block, span, reach)
        weights = masked(tl.exp2(scores - norm[:, None]), m, j, z, ramp, span)
        grad_weights = tl.dot(g, v, input_precision="ieee") * scale
        dropped = weights
        if words is not None:
            low, high = random_words(words, row, m, block, plane)
            keep = context_kept(low, high, m, j, span, threshold)
            dropped = tl.where(keep, weights, 0.0)
            grad_weights = tl.where(keep, grad_weights, 0.0)
        found_value += tl.dot(tl.trans(g), dropped.to(g.dtype), input_precision="ieee")
        grad_scores = weights * (grad_weights - mean[:, None])
        found_key += tl.dot(tl.trans(q), grad_scores.to(q.dtype), input_precision="ieee")

    grad_key += b.to(tl.int64) * grad_stride_b + slot * grad_stride_h
    grad_value += b.to(tl.int64) * grad_stride_b + slot * grad_stride_h
    put_columns(grad_key, found_key, j, d, span + block, 1, grad_stride_d, SIZE)
    put_columns(grad_value, found_value * scale, j, d, span + block, 1, grad_stride_d, SIZE)


@compiled
def memory_kernel(
    query, memory_key, memory_value, words, grad, lse, delta, grad_memory_key, grad_memory_value,
    heads, batch, block, memory_size, threshold, scale, plane,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of persistent keys and values, from every query of every row: one sum, in one order."""
    n, d = tl.program_id(0) * KEYS + tl.arange(0, KEYS), tl.arange(0, PADDED)
    head = tl.program_id(1)
    k = columns(memory_key + head * SIZE * memory_size, n, d, memory_size, 1, memory_size, SIZE)
    v = columns(memory_value + head * SIZE * memory_size, n, d, memory_size, SIZE, 1, SIZE)
    found_key = tl.zeros([PADDED, KEYS], tl.float32)
    found_value = tl.zeros([PADDED, KEYS], tl.float32)

    tiles = (block + QUERIES - 1) // QUERIES
    for tile in range(0, batch * tiles):
        row = first_row(tile // tiles, head, heads, block)
        m = tile % tiles * QUERIES + tl.arange(0, QUERIES)
        q, g = rows(query, row, m, d, block, SIZE), rows(grad, row, m, d, block, SIZE)
        norm = tl.load(lse + row + m, mask=m < block, other=0.0)
        mean = tl.load(delta + row + m, mask=m < block, other=0.0)
        weights = tl.exp2(memory_scores(q, k, n, memory_size) - norm[:, None])
        grad_weights = tl.dot(g, v, input_precision="ieee") * scale
        dropped = weights
        if words is not None:
            low, high = random_words(words, row, m, block, plane)
            keep = memory_kept(low, high, n, threshold)
            dropped = tl.where(keep, weights, 0.0)
            grad_weights = tl.where(keep, grad_weights, 0.0)
        found_value += tl.dot(tl.trans(g), dropped.to(g.dtype), input_precision="ieee")
        grad_scores = weights * (grad_weights - mean[:, None])
        found_key += tl.dot(tl.trans(q), grad_scores.to(q.dtype), input_precision="ieee")

    grad_memory_key += head * SIZE * memory_size
    grad_memory_value += head * SIZE * memory_size
    put_columns(grad_memory_key, found_key, n, d, memory_size, 1, memory_size, SIZE)
    put_columns(grad_memory_value, found_value * scale, n, d, memory_size, SIZE, 1, SIZE)
