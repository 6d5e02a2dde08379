"""The Triton kernels of fused attention, one forward and four backward; a program is most often a tile of one head in
one row.

A query m sees the key at position j through column c = j − m of `near`, its products with the position vectors, where
column S − d belongs to distance d. It sees the columns from S − reach to S − 1. Weights are powers of two, which is
what the hardware computes: exp(s) = 2^(s · log₂e).

The backward pass. With weights p = softmax(s), where s holds the soft mask's logarithm too, what dropout leaves of them
u = keep · p / (1 − rate), and the output o = Σ u v, a gradient g of the output gives

    grad v = Σ u g        grad u = g · v        grad p = keep · grad u / (1 − rate)
    grad s = p (grad p − Σ p grad p) = p (grad p − delta),    delta = Σ u grad u = g · o

since Σ p grad p = Σ p keep (g · v) / (1 − rate) = g · Σ u v. So one number a query, delta, stands for the sum over all
that it sees, and p is made again from the scores and the sum of the query's weights, `lse`. From there

    grad k = Σ grad s q    grad q = Σ grad s k + Σ grad near p_d    grad near = grad s, by distance
    grad z = Σ grad s · d log m / dz,    d log m / dz = 1 / (R m) on the ramp, 0 elsewhere

`near` is read for the last time where its gradient is made: a number of it belongs to one query and one key, so one
program reads it, after the gradients of keys and values are done, and then needs it no more. Its gradient takes its
place, and saves the largest tensor of the pass a twin.

B batch, H heads of the layer, h heads of the launch (their numbers are in `order`, at `first` and after it), M block,
D head size, P the next power of two, S span of the launch's longest head, T = S + M positions, N persistent vectors;
q and k, queries and keys of a tile.

All tensors are contiguous: queries (M, B, h, D), keys and values (T, B, h, 2, D) and `near` (M, B, h, S), with heads in
the launch's order; outputs (M, B, H, D) and one number a query (B, H, M), with heads in their own.
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
def full_of(z, span):
    """Return how many of those columns it sees at full weight, off its ramp."""
    return span if z is None else tl.minimum(span, z.to(tl.int32))


@triton.jit
def parts_of_keys(start, block, span, reach, full, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Return where the keys begin that some query of a tile sees, those that all of them see at full weight, those
    after; and where they end. All but the end are multiples of KEYS: the compiler must see it, or loads are slow."""
    nearest = (start + span - reach) // KEYS * KEYS
    outer = tl.maximum((start + span) // KEYS, nearest // KEYS) * KEYS
    inner = (start + QUERIES - 1 + span - full + KEYS - 1) // KEYS
    inner = tl.minimum(tl.maximum(inner, nearest // KEYS), outer // KEYS) * KEYS
    inner = outer if start + QUERIES > block else inner
    return nearest, inner // KEYS * KEYS, outer, tl.minimum(start + QUERIES, block) - 1 + span


@triton.jit
def numbers_of(b, head, heads, block):
    """Return where a head's numbers, one per query, begin in a row: (B, H, M)."""
    return (b * heads + head).to(tl.int64) * block


@triton.jit
def vectors_of(b, head, heads, SIZE: tl.constexpr):
    """Return where a head's vectors begin in a row: (length, B, heads, SIZE)."""
    return (b * heads + head) * SIZE


@triton.jit
def from_on(tensor, first, stride):
    """Where the first of a tile begins of what lies `stride` apart, which may be beyond 2³¹; in a tile, 32 bits do."""
    return tensor + tl.cast(first, tl.int64) * stride


@triton.jit
def rows(tensor, first, i, d, length, stride, SIZE: tl.constexpr):
    """(i, P): vectors that lie `stride` apart."""
    inside = (i < length)[:, None] & (d < SIZE)[None, :]
    place = (i - first).to(tl.int32)[:, None] * stride + d[None, :]
    return tl.load(from_on(tensor, first, stride) + place, mask=inside, other=0.0)


@triton.jit
def put_rows(tensor, tile, first, i, d, length, stride, SIZE: tl.constexpr):
    inside = (i < length)[:, None] & (d < SIZE)[None, :]
    place = (i - first).to(tl.int32)[:, None] * stride + d[None, :]
    tl.store(from_on(tensor, first, stride) + place, tile.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def columns(tensor, i, d, length, SIZE: tl.constexpr):
    """(i, P): vectors that are columns of (SIZE, length)."""
    inside = (i < length)[:, None] & (d < SIZE)[None, :]
    return tl.load(tensor + d[None, :] * length + i[:, None], mask=inside, other=0.0)


@triton.jit
def numbers(tensor, m, block):
    return tl.load(tensor + m, mask=m < block, other=0)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


# Below, m and j are positions of queries and of keys, shaped to be one dimension each of a tile: (q, 1) and (1, k), or
# (1, q) and (k, 1) where the tile is multiplied with queries. `row` is where a query's part of `near` begins.


@triton.jit
def context_scores(products, near, row, m, j, block, span, reach):
    """Scores in units of log 2, −inf where nothing is seen."""
    column = j - m
    seen = (column >= span - reach) & (column < span) & (m < block)
    scores = products + tl.load(near + (row - m + j), mask=seen, other=0.0).to(tl.float32)
    return tl.where(seen, scores * LOG2E, float("-inf"))


@triton.jit
def inner_scores(products, near, row, m, j):
    """The same where all is seen."""
    return (products + tl.load(near + (row - m + j)).to(tl.float32)) * LOG2E


@triton.jit
def memory_scores(products, n, memory_size):
    return tl.where(n < memory_size, products * LOG2E, float("-inf"))


@triton.jit
def rise_of(m, j, z, ramp, span):
    """The height of each key on its head's ramp, in tokens: `ramp` at its top, 0 at its foot."""
    return ramp + 1 + z - (span - (j - m))


@triton.jit
def soft_mask(m, j, z, ramp, span):
    """To multiply weights by. A logarithm of it among the scores would mean the same and cost more."""
    return tl.minimum(rise_of(m, j, z, ramp, span) * (1.0 / ramp), 1.0) + FLOOR


@triton.jit
def span_gradient(grad_scores, m, j, z, ramp, span):
    """(q,): what each query says of its head's span."""
    rise = rise_of(m, j, z, ramp, span)
    slope = 1.0 / (tl.maximum(rise, 0.0) + ramp * FLOOR)
    return tl.sum(tl.where(rise <= ramp, grad_scores * slope, 0.0), 1)


@triton.jit
def random_lines(words, m, block, plane):
    """A random line for each query, (q,): its slope, which is odd, and where it begins."""
    slope = numbers(words, m, block).to(tl.uint32, bitcast=True) | 1
    return slope, numbers(words + plane, m, block).to(tl.uint32, bitcast=True)


@triton.jit
def kept(slope, begin, place, threshold):
    """Which weights dropout leaves. A place on a random line is a random number, and of any two places on it
    independent ones; one more mixing makes more places so. It is a third of the work of a hash of the place alone. As a
    function of places it gives the same answer in every kernel, whatever the tiles."""
    x = begin + slope * place.to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 16)) * 0x846CA68B
    return x.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def context_kept(slope, begin, m, j, span, threshold):
    """The place of a key is minus its distance, S − (j − m)."""
    return kept(slope, begin - slope * (span + m).to(tl.uint32, bitcast=True), j, threshold)


@triton.jit
def memory_kept(slope, begin, n, threshold):
    return kept(slope, begin + slope, n, threshold)


@compiled
def delta_kernel(
    grad, output, delta, batch, heads, block, total,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sum of grad · output of each query and head, for a tile of all `total` of them."""
    start = tl.program_id(0).to(tl.int64) * QUERIES
    i, d = start + tl.arange(0, QUERIES), tl.arange(0, PADDED)
    g, o = rows(grad, start, i, d, total, SIZE, SIZE), rows(output, start, i, d, total, SIZE, SIZE)
    head, b, m = i % heads, i // heads % batch, i // heads // batch
    place = (b * heads + head) * block + m
    tl.store(delta + place, tl.sum(g.to(tl.float32) * o.to(tl.float32), 1), mask=i < total)


@triton.jit
def weighed(scores, v, keep, mask, top, total, found, PRECISION: tl.constexpr):
    """The sum of the values so far, and that of the weights, relative to 2^top, with one more tile of scores."""
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
    query, key_value, near, memory_key, memory_value, spans, words, output, lse, order,
    first, heads, block, span, memory_size, ramp, threshold, scale, plane,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`output` and the base-2 logarithm of each query's sum of weights, for a tile of queries."""
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
            keep = None if words is None else memory_kept(slope[:, None], begin[:, None], n[None, :], threshold)
            top, total, found = weighed(scores, v, keep, None, top, total, found, PRECISION)

    key_value += vectors_of(b, slot, here, 2 * SIZE)
    stride = batch * here * span
    near = from_on(near + vectors_of(b, slot, here, 1) * span, start, stride)
    marks = parts_of_keys(start, block, span, reach, full_of(z, span), QUERIES, KEYS)
    for part in tl.static_range(3):  # the second needs no masks
        for at in range(marks[part], marks[part + 1], KEYS):
            j = at + tl.arange(0, KEYS)
            k = rows(key_value, at, j, d, span + block, batch * here * 2 * SIZE, SIZE)
            v = rows(key_value + SIZE, at, j, d, span + block, batch * here * 2 * SIZE, SIZE)
            mm, jj, own = m[:, None], j[None, :], (m - start)[:, None] * stride
            scores, mask = product(q, tl.trans(k), PRECISION), None
            if part == 1:
                scores = inner_scores(scores, near, own, mm, jj)
            else:
                scores = context_scores(scores, near, own, mm, jj, block, span, reach)
                mask = None if z is None else soft_mask(mm, jj, z, ramp, span)
            keep = None if words is None else context_kept(slope[:, None], begin[:, None], mm, jj, span, threshold)
            top, total, found = weighed(scores, v, keep, mask, top, total, found, PRECISION)

    total = tl.where(m < block, total, 1.0)
    found *= (scale / total)[:, None]
    put_rows(output + vectors_of(b, head, heads, SIZE), found, start, m, d, block, batch * heads * SIZE, SIZE)
    tl.store(lse + numbers_of(b, head, heads, block) + m, top + tl.log2(total), mask=m < block)


@compiled
def query_kernel(
    query, key_value, near, memory_key, memory_value, spans, words, grad, lse, delta, grad_query, grad_spans, order,
    first, heads, block, span, memory_size, ramp, threshold, scale, plane,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries, without what comes through `near`; that of `near`, in its place; and what each
    query says of its head's span."""
    start, slot, b = tl.program_id(0) * QUERIES, tl.program_id(1), tl.program_id(2)
    head, here, batch = tl.load(order + first + slot), tl.num_programs(1), tl.num_programs(2)
    m, d = start + tl.arange(0, QUERIES), tl.arange(0, PADDED)
    z = None if spans is None else tl.load(spans + head)
    reach = reach_of(z, ramp, span)
    row = numbers_of(b, head, heads, block)
    q = rows(query + vectors_of(b, slot, here, SIZE), start, m, d, block, batch * here * SIZE, SIZE)
    g = rows(grad + vectors_of(b, head, heads, SIZE), start, m, d, block, batch * heads * SIZE, SIZE)
    norm, mean = numbers(lse + row, m, block), numbers(delta + row, m, block)
    if words is not None:
        slope, begin = random_lines(words + row, m, block, plane)
    found = tl.zeros([QUERIES, PADDED], tl.float32)
    felt = tl.zeros([QUERIES], tl.float32)

    if memory_key is not None:
        memory_key += head * SIZE * memory_size
        memory_value += head * SIZE * memory_size
        for at in range(0, memory_size, KEYS):
            n = at + tl.arange(0, KEYS)
            k = columns(memory_key, n, d, memory_size, SIZE)
            v = rows(memory_value, at, n, d, memory_size, SIZE, SIZE)
            scores = memory_scores(product(q, tl.trans(k), PRECISION), n[None, :], memory_size)
            weights = tl.exp2(scores - norm[:, None])
            grad_weights = product(g, tl.trans(v), PRECISION) * scale
            if words is not None:
                keep = memory_kept(slope[:, None], begin[:, None], n[None, :], threshold)
                grad_weights = tl.where(keep, grad_weights, 0.0)
            grad_scores = weights * (grad_weights - mean[:, None])
            found += product(grad_scores.to(k.dtype), k, PRECISION)

    key_value += vectors_of(b, slot, here, 2 * SIZE)
    stride = batch * here * span
    near = from_on(near + vectors_of(b, slot, here, 1) * span, start, stride)
    marks = parts_of_keys(start, block, span, reach, full_of(z, span), QUERIES, KEYS)
    for at in range(start // KEYS * KEYS, marks[0], KEYS):  # beyond the reach
        column = at + tl.arange(0, KEYS)[None, :] - m[:, None]
        nothing = tl.zeros([QUERIES, KEYS], near.dtype.element_ty)
        tl.store(near + ((m - start)[:, None] * stride + column), nothing, mask=(column >= 0) & (m < block)[:, None])
    for part in tl.static_range(3):  # the second needs no masks
        for at in range(marks[part], marks[part + 1], KEYS):
            j = at + tl.arange(0, KEYS)
            k = rows(key_value, at, j, d, span + block, batch * here * 2 * SIZE, SIZE)
            v = rows(key_value + SIZE, at, j, d, span + block, batch * here * 2 * SIZE, SIZE)
            mm, jj, own = m[:, None], j[None, :], (m - start)[:, None] * stride
            scores = product(q, tl.trans(k), PRECISION)
            if part == 1:
                scores = inner_scores(scores, near, own, mm, jj)
            else:
                scores = context_scores(scores, near, own, mm, jj, block, span, reach)
            weights = tl.exp2(scores - norm[:, None])
            if part != 1 and z is not None:
                weights *= soft_mask(mm, jj, z, ramp, span)
            grad_weights = product(g, tl.trans(v), PRECISION) * scale
            if words is not None:
                keep = context_kept(slope[:, None], begin[:, None], mm, jj, span, threshold)
                grad_weights = tl.where(keep, grad_weights, 0.0)
            grad_scores = weights * (grad_weights - mean[:, None])
            if part != 1 and z is not None:
                felt += span_gradient(grad_scores, mm, jj, z, ramp, span)
            grad_scores = grad_scores.to(k.dtype)
            found += product(grad_scores, k, PRECISION)
            column = jj - mm
            if part == 1:
                tl.store(near + (own - mm + jj), grad_scores)
            else:
                inside = (column >= 0) & (column < span) & (mm < block)
                tl.store(near + (own - mm + jj), grad_scores, mask=inside)

    put_rows(grad_query + vectors_of(b, slot, here, SIZE), found, start, m, d, block, batch * here * SIZE, SIZE)
    if z is not None:
        tl.store(grad_spans + row + m, felt, mask=m < block)


@compiled
def key_value_kernel(
    query, key_value, near, spans, words, grad, lse, delta, grad_key_value, order,
    first, heads, block, span, ramp, threshold, scale, plane,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, from all the queries that see some of them.

    One loop: three, as in the others, take a quarter longer here, since the sums of both gradients fill the registers.
    """
    start, slot, b = tl.program_id(0) * KEYS, tl.program_id(1), tl.program_id(2)
    head, here, batch = tl.load(order + first + slot), tl.num_programs(1), tl.num_programs(2)
    j, d = start + tl.arange(0, KEYS), tl.arange(0, PADDED)
    z = None if spans is None else tl.load(spans + head)
    reach = reach_of(z, ramp, span)
    row = numbers_of(b, head, heads, block)
    query += vectors_of(b, slot, here, SIZE)
    grad += vectors_of(b, head, heads, SIZE)
    place = vectors_of(b, slot, here, 2 * SIZE)
    near += vectors_of(b, slot, here, 1) * span
    stride = batch * here * span
    k = rows(key_value + place, start, j, d, span + block, batch * here * 2 * SIZE, SIZE)
    v = rows(key_value + place + SIZE, start, j, d, span + block, batch * here * 2 * SIZE, SIZE)
    found_key = tl.zeros([KEYS, PADDED], tl.float32)
    found_value = tl.zeros([KEYS, PADDED], tl.float32)

    earliest = tl.maximum(start - span + 1, 0) // QUERIES * QUERIES
    for at in range(earliest, tl.minimum(start + KEYS - span + reach, block), QUERIES):
        m = at + tl.arange(0, QUERIES)
        q = rows(query, at, m, d, block, batch * here * SIZE, SIZE)
        g = rows(grad, at, m, d, block, batch * heads * SIZE, SIZE)
        norm, mean = numbers(lse + row, m, block), numbers(delta + row, m, block)
        mm, jj, own = m[None, :], j[:, None], tl.arange(0, QUERIES)[None, :] * stride
        scores = product(k, tl.trans(q), PRECISION)  # (k, q), as both sums multiply it
        scores = context_scores(scores, from_on(near, at, stride), own, mm, jj, block, span, reach)
        weights = tl.exp2(scores - norm[None, :])
        if z is not None:
            weights *= soft_mask(mm, jj, z, ramp, span)
        grad_weights = product(v, tl.trans(g), PRECISION) * scale
        dropped = weights
        if words is not None:
            slope, begin = random_lines(words + row, m, block, plane)
            keep = context_kept(slope[None, :], begin[None, :], mm, jj, span, threshold)
            dropped = tl.where(keep, weights, 0.0)
            grad_weights = tl.where(keep, grad_weights, 0.0)
        found_value += product(dropped.to(g.dtype), g, PRECISION)
        grad_scores = weights * (grad_weights - mean[None, :])
        found_key += product(grad_scores.to(q.dtype), q, PRECISION)

    found_value *= scale
    put_rows(grad_key_value + place, found_key, start, j, d, span + block, batch * here * 2 * SIZE, SIZE)
    put_rows(grad_key_value + place + SIZE, found_value, start, j, d, span + block, batch * here * 2 * SIZE, SIZE)


@compiled
def memory_kernel(
    query, memory_key, memory_value, words, grad, lse, delta, grad_memory_key, grad_memory_value, order,
    first, heads, batch, block, memory_size, threshold, scale, plane,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of persistent keys and values, from every query of some of the rows: the rows are dealt
    out to as many programs as the third dimension has, each of which adds up its own in one order."""
    start = tl.program_id(0) * KEYS
    n, d = start + tl.arange(0, KEYS), tl.arange(0, PADDED)
    slot, part, parts = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    head, here = tl.load(order + first + slot), tl.num_programs(1)
    k = columns(memory_key + head * SIZE * memory_size, n, d, memory_size, SIZE)
    v = rows(memory_value + head * SIZE * memory_size, start, n, d, memory_size, SIZE, SIZE)
    found_key = tl.zeros([KEYS, PADDED], tl.float32)
    found_value = tl.zeros([KEYS, PADDED], tl.float32)

    tiles = (block + QUERIES - 1) // QUERIES
    for tile in range(part * batch // parts * tiles, (part + 1) * batch // parts * tiles):
        b, at = tile // tiles, tile % tiles * QUERIES
        m = at + tl.arange(0, QUERIES)
        row = numbers_of(b, head, heads, block)
        q = rows(query + vectors_of(b, slot, here, SIZE), at, m, d, block, batch * here * SIZE, SIZE)
        g = rows(grad + vectors_of(b, head, heads, SIZE), at, m, d, block, batch * heads * SIZE, SIZE)
        norm, mean = numbers(lse + row, m, block), numbers(delta + row, m, block)
        scores = memory_scores(product(k, tl.trans(q), PRECISION), n[:, None], memory_size)  # (k, q)
        weights = tl.exp2(scores - norm[None, :])
        grad_weights = product(v, tl.trans(g), PRECISION) * scale
        dropped = weights
        if words is not None:
            slope, begin = random_lines(words + row, m, block, plane)
            keep = memory_kept(slope[None, :], begin[None, :], n[:, None], threshold)
            dropped = tl.where(keep, weights, 0.0)
            grad_weights = tl.where(keep, grad_weights, 0.0)
        found_value += product(dropped.to(g.dtype), g, PRECISION)
        grad_scores = weights * (grad_weights - mean[None, :])
        found_key += product(grad_scores.to(q.dtype), q, PRECISION)

    place = (part * heads + head).to(tl.int64) * memory_size * SIZE
    put_rows(grad_memory_key + place, found_key, start, n, d, memory_size, SIZE, SIZE)
    put_rows(grad_memory_value + place, found_value * scale, start, n, d, memory_size, SIZE, SIZE)
