"""The backward kernels: each computes the weights again from one number per query. Shapes are those of `common`.

The derivation, for one query of one head. Sums run over all keys j that the query sees, of context and of memory. With
scores s_j, which hold the logarithm of the soft mask too, the forward pass computes

    a_j = exp s_j / Σ exp s         weights, made again as 2^(log₂e · s_j − lse), with `lse` = log₂ Σ exp s
    u_j = keep_j a_j / (1 − rate)   what dropout leaves of them
    y   = Σ u_j v_j                 output

A gradient g of the output gives

    grad v_j = u_j g                                          added up over the queries
    grad u_j = g · v_j
    grad a_j = keep_j grad u_j / (1 − rate)
    grad s_j = a_j (grad a_j − delta),  delta = Σ a_i grad a_i

The last line is the derivative of softmax. Its sum needs no pass over the keys: by the definitions of u and y

    delta = Σ a_i keep_i (g · v_i) / (1 − rate) = g · Σ u_i v_i = g · y

which `delta_kernel` computes before the others, one number per query. The scores are q · k_j + q · p_d + log m(d), and
q · k_j alone for memory, with q scaled by 1 / √D. From there

    grad k_j = grad s_j q                                     added up over the queries
    grad q   = Σ grad s_j k_j + Σ grad s_j p_d
    grad p_d = grad s_j q at distance d                       added up over queries, heads and rows
    grad z   = Σ grad s_j · d log m / dz,  d log m / dz = 1 / (R m) on the ramp, 0 elsewhere

The second sum of grad q, and grad p_d, are matrix products outside of the kernels. What they need is grad s by
distance, the gradient of `position_scores`.

Why that gradient may overwrite the scores: each number of `position_scores` belongs to one query and one distance, and
so to one key. `key_value_kernel` reads it and is done before `query_kernel` begins, on the same stream. There, one
program owns a tile of queries. It loads the number once, to make the weight again, and stores the gradient in its
place. No other program and no later kernel reads the score. What lies beyond a head's reach becomes zero, because the
products outside read it too. So the largest tensor of the pass needs no twin.
"""

import triton
import triton.language as tl

from adaptive_span.attention.fused_kernels.common import (
    FLOOR,
    columns,
    compiled,
    context_scores,
    context_survives,
    from_on,
    full_of,
    is_seen,
    memory_scores,
    memory_survives,
    numbers,
    numbers_of,
    parts_of_keys,
    product,
    put_rows,
    random_lines,
    reach_of,
    rise_of,
    rows,
    soft_mask,
    vectors_of,
)


@triton.jit
def span_gradient(grad_scores, m, j, z, ramp, span):
    """Return what each query says of its head's span, (q,)."""
    rise = rise_of(m, j, z, ramp, span)
    slope = 1.0 / (tl.maximum(rise, 0.0) + ramp * FLOOR)
    return tl.sum(tl.where(rise <= ramp, grad_scores * slope, 0.0), 1)


@compiled
def delta_kernel(
    grad, output, delta, batch, heads, block, total,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute grad · output of each query and head, for a tile of all `total` of them."""
    start = tl.program_id(0).to(tl.int64) * QUERIES
    i, d = start + tl.arange(0, QUERIES), tl.arange(0, PADDED)
    g, o = rows(grad, start, i, d, total, SIZE, SIZE), rows(output, start, i, d, total, SIZE, SIZE)
    head, b, m = i % heads, i // heads % batch, i // heads // batch
    place = (b * heads + head) * block + m
    tl.store(delta + place, tl.sum(g.to(tl.float32) * o.to(tl.float32), 1), mask=i < total)


@compiled
def query_kernel(
    query, key_value, position_scores, memory_key, memory_value, spans, words, grad, lse, delta, grad_query, grad_spans,
    order, first, heads, block, span, memory_size, ramp, threshold, scale, plane,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
    SHORT: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile of queries and of its head's span, and that of `position_scores` in its place.

    The first is without what comes through `position_scores`; the second is one number per query.
    """
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
                keep = memory_survives(slope[:, None], begin[:, None], n[None, :], threshold)
                grad_weights = tl.where(keep, grad_weights, 0.0)
            grad_scores = weights * (grad_weights - mean[:, None])
            found += product(grad_scores.to(k.dtype), k, PRECISION)

    key_value += vectors_of(b, slot, here, 2 * SIZE)
    stride = batch * here * span
    position_scores = from_on(position_scores + vectors_of(b, slot, here, 1) * span, start, stride)
    marks = parts_of_keys(start, block, span, reach, full_of(z, span), QUERIES, KEYS, SHORT)
    for at in range(start // KEYS * KEYS, marks[0], KEYS):  # beyond the reach
        j = at + tl.arange(0, KEYS)
        column = j[None, :] - m[:, None]
        nothing = tl.zeros([QUERIES, KEYS], position_scores.dtype.element_ty)
        tl.store(
            position_scores + ((m - start)[:, None] * stride + column),
            nothing,
            mask=(column >= 0) & (m < block)[:, None] & (j < marks[0])[None, :],
        )
    for part in tl.static_range(2 if SHORT else 0, 3):  # the second needs no masks
        for at in range(marks[part], marks[part + 1], KEYS):
            j = at + tl.arange(0, KEYS)
            mm, jj = m[:, None], j[None, :]
            seen = None if part == 1 else is_seen(mm, jj, block, span, reach)
            place = (m - start)[:, None] * stride - mm + jj
            given = tl.load(position_scores + place, mask=seen)
            k = rows(key_value, at, j, d, span + block, batch * here * 2 * SIZE, SIZE)
            v = rows(key_value + SIZE, at, j, d, span + block, batch * here * 2 * SIZE, SIZE)
            scores = context_scores(product(q, tl.trans(k), PRECISION), given, seen)
            weights = tl.exp2(scores - norm[:, None])
            if part != 1 and z is not None:
                weights *= soft_mask(mm, jj, z, ramp, span)
            grad_weights = product(g, tl.trans(v), PRECISION) * scale
            if words is not None:
                keep = context_survives(slope[:, None], begin[:, None], mm, jj, span, threshold)
                grad_weights = tl.where(keep, grad_weights, 0.0)
            grad_scores = weights * (grad_weights - mean[:, None])
            if part != 1 and z is not None:
                felt += span_gradient(grad_scores, mm, jj, z, ramp, span)
            grad_scores = grad_scores.to(k.dtype)
            found += product(grad_scores, k, PRECISION)
            column = jj - mm
            inside = None if part == 1 else (column >= 0) & (column < span) & (mm < block)
            tl.store(position_scores + place, grad_scores, mask=inside)

    put_rows(grad_query + vectors_of(b, slot, here, SIZE), found, start, m, d, block, batch * here * SIZE, SIZE)
    if z is not None:
        tl.store(grad_spans + row + m, felt, mask=m < block)


@compiled
def key_value_kernel(
    query, key_value, position_scores, spans, words, grad, lse, delta, grad_key_value, order,
    first, heads, block, span, ramp, threshold, scale, plane,
    SIZE: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile of keys and values, from all the queries that see some of them.

    One loop: three, as in the others, take a quarter longer here, since the sums of both gradients fill the registers.
    For the same reason `position_scores` are loaded when they are needed, and not before the product.
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
    position_scores += vectors_of(b, slot, here, 1) * span
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
        mm, jj = m[None, :], j[:, None]
        seen = is_seen(mm, jj, block, span, reach)
        products = product(k, tl.trans(q), PRECISION)  # (k, q), as both sums multiply it
        own = tl.arange(0, QUERIES)[None, :] * stride - mm + jj
        given = tl.load(from_on(position_scores, at, stride) + own, mask=seen)
        scores = context_scores(products, given, seen)
        weights = tl.exp2(scores - norm[None, :])
        if z is not None:
            weights *= soft_mask(mm, jj, z, ramp, span)
        grad_weights = product(v, tl.trans(g), PRECISION) * scale
        dropped = weights
        if words is not None:
            slope, begin = random_lines(words + row, m, block, plane)
            keep = context_survives(slope[None, :], begin[None, :], mm, jj, span, threshold)
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
    """Compute the gradients of a tile of persistent keys and values, from every query of some of the rows.

    The rows are dealt out to as many programs as the third dimension has. Each adds up its own in one order.
    """
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
            keep = memory_survives(slope[None, :], begin[None, :], n[:, None], threshold)
            dropped = tl.where(keep, weights, 0.0)
            grad_weights = tl.where(keep, grad_weights, 0.0)
        found_value += product(dropped.to(g.dtype), g, PRECISION)
        grad_scores = weights * (grad_weights - mean[None, :])
        found_key += product(grad_scores.to(q.dtype), q, PRECISION)

    place = (part * heads + head).to(tl.int64) * memory_size * SIZE
    put_rows(grad_memory_key + place, found_key, start, n, d, memory_size, SIZE, SIZE)
    put_rows(grad_memory_value + place, found_value * scale, start, n, d, memory_size, SIZE, SIZE)
