"""The forward kernel: outputs, and the logarithm of the sum of each query's weights. Shapes are those of `common`."""

import triton
import triton.language as tl

from adaptive_span.attention.fused_kernels.common import (
    columns,
    compiled,
    context_scores,
    context_survives,
    from_on,
    full_of,
    is_seen,
    memory_scores,
    memory_survives,
    numbers_of,
    parts_of_keys,
    product,
    put_rows,
    random_lines,
    reach_of,
    rows,
    soft_mask,
    vectors_of,
)


@triton.jit
def weighed(scores, v, keep, mask, top, total, found, PRECISION: tl.constexpr):
    """Add a tile of scores to the sums of values and of weights so far, both relative to 2^top."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    decay = tl.exp2(top - new_top)
    weights = tl.exp2(scores - new_top[:, None])
    if mask is not None:
        weights *= mask
    total = total * decay + tl.sum(weights, 1)
    if keep is not None:
        weights = tl.where(keep, weights, 0.0)
    return new_top, total, found * decay[:, None] + product(weights.to(v.dtype), v, PRECISION)


@compiled
def forward_kernel(
    query, key_value, position_scores, memory_key, memory_value, spans, words, output, lse, order,
    first, heads, block, span, memory_size, ramp, threshold, scale, plane,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
    SHORT: tl.constexpr,
):  # fmt: skip
    """Compute `output`, and `lse`, the base-2 logarithm of each query's sum of weights, for a tile of queries."""
    start, slot, b = tl.program_id(0) * QUERIES, tl.program_id(1), tl.program_id(2)
    head, here, batch = tl.load(order + first + slot), tl.num_programs(1), tl.num_programs(2)
    m, d = start + tl.arange(0, QUERIES), tl.arange(0, PADDED)
    z = None if spans is None else tl.load(spans + head)
    reach = reach_of(z, ramp, span)
    q = rows(query + vectors_of(b, slot, here, SIZE), start, m, d, block, batch * here * SIZE, SIZE)
    if words is not None:
        slope, begin = random_lines(words + numbers_of(b, head, heads, block), m, block, plane)
    top = tl.full([QUERIES], -1e30, tl.float32)  # finite, so that a tile in which nothing is seen is no special case
    total = tl.zeros([QUERIES], tl.float32)
    found = tl.zeros([QUERIES, PADDED], tl.float32)

    if memory_key is not None:
        memory_key += head * SIZE * memory_size
        memory_value += head * SIZE * memory_size
        for at in range(0, memory_size, KEYS):
            n = at + tl.arange(0, KEYS)
            k = columns(memory_key, n, d, memory_size, SIZE)
            v = rows(memory_value, at, n, d, memory_size, SIZE, SIZE)
            scores = memory_scores(product(q, tl.trans(k), PRECISION), n[None, :], memory_size)
            keep = None if words is None else memory_survives(slope[:, None], begin[:, None], n[None, :], threshold)
            top, total, found = weighed(scores, v, keep, None, top, total, found, PRECISION)

    key_value += vectors_of(b, slot, here, 2 * SIZE)
    stride = batch * here * span
    position_scores = from_on(position_scores + vectors_of(b, slot, here, 1) * span, start, stride)
    marks = parts_of_keys(start, block, span, reach, full_of(z, span), QUERIES, KEYS, SHORT)
    for part in tl.static_range(2 if SHORT else 0, 3):  # the second needs no masks
        for at in range(marks[part], marks[part + 1], KEYS):
            j = at + tl.arange(0, KEYS)
            mm, jj = m[:, None], j[None, :]
            seen = None if part == 1 else is_seen(mm, jj, block, span, reach)
            given = tl.load(position_scores + ((m - start)[:, None] * stride - mm + jj), mask=seen)
            k = rows(key_value, at, j, d, span + block, batch * here * 2 * SIZE, SIZE)
            v = rows(key_value + SIZE, at, j, d, span + block, batch * here * 2 * SIZE, SIZE)
            scores = context_scores(product(q, tl.trans(k), PRECISION), given, seen)
            mask = None if part == 1 or z is None else soft_mask(mm, jj, z, ramp, span)
            keep = None if words is None else context_survives(slope[:, None], begin[:, None], mm, jj, span, threshold)
            top, total, found = weighed(scores, v, keep, mask, top, total, found, PRECISION)

    total = tl.where(m < block, total, 1.0)
    found *= (scale / total)[:, None]
    put_rows(output + vectors_of(b, head, heads, SIZE), found, start, m, d, block, batch * heads * SIZE, SIZE)
    tl.store(lse + numbers_of(b, head, heads, block) + m, top + tl.log2(total), mask=m < block)
