"""What the forward and the backward kernels share: addresses, scores, the soft mask, and which weights dropout keeps.

A query m sees the key at position j through column c = j − m of `position_scores`, its products with the position
vectors, where column S − d belongs to distance d. It sees the columns from S − reach to S − 1. Weights are powers of
two, which is what the hardware computes: exp(s) = 2^(s · log₂e).

Besides the letters of `adaptive_span.attention`: h heads of the launch (their numbers are in `order`, at `first` and
after it), S span of the launch's longest head, P the next power of two of D, q and k queries and keys of a tile.

All tensors are contiguous. Queries (M, B, h, D), keys and values (T, B, h, 2, D) and `position_scores` (M, B, h, S)
have their heads in the launch's order; outputs (M, B, H, D) and one number per query (B, H, M) in their own.
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
    """Return how many of the launch's columns this head sees: all those where its soft mask is not negative."""
    return span if z is None else tl.minimum(span, (ramp + 1 + z).to(tl.int32))


@triton.jit
def full_of(z, span):
    """Return how many of those columns it sees at full weight, off its ramp."""
    return span if z is None else tl.minimum(span, z.to(tl.int32))


@triton.jit
def parts_of_keys(start, block, span, reach, full, QUERIES: tl.constexpr, KEYS: tl.constexpr, SHORT: tl.constexpr):
    """Return where the three parts of a tile's keys begin, and where the last one ends.

    Some query sees the first part, all of them see the second at full weight, some see the third. All but the end are
    multiples of KEYS. The compiler must see it, or loads are slow. A short span is one part, the third, which begins at
    the first key that is seen, so that it is as few tiles as can be.
    """
    end = tl.minimum(start + QUERIES, block) - 1 + span
    if SHORT:
        nearest = start + span - reach
        return nearest, nearest, nearest, end
    nearest = (start + span - reach) // KEYS * KEYS
    outer = tl.maximum((start + span) // KEYS, nearest // KEYS) * KEYS
    inner = (start + QUERIES - 1 + span - full + KEYS - 1) // KEYS
    inner = tl.minimum(tl.maximum(inner, nearest // KEYS), outer // KEYS) * KEYS
    inner = outer if start + QUERIES > block else inner
    return nearest, inner // KEYS * KEYS, outer, end


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
    """Return where a tile begins of what lies `stride` apart: it may be beyond 2³¹, while 32 bits do within a tile."""
    return tensor + tl.cast(first, tl.int64) * stride


@triton.jit
def rows(tensor, first, i, d, length, stride, SIZE: tl.constexpr):
    """Load vectors that lie `stride` apart, (i, P)."""
    inside = (i < length)[:, None] & (d < SIZE)[None, :]
    place = (i - first).to(tl.int32)[:, None] * stride + d[None, :]
    return tl.load(from_on(tensor, first, stride) + place, mask=inside, other=0.0)


@triton.jit
def put_rows(tensor, tile, first, i, d, length, stride, SIZE: tl.constexpr):
    """Store vectors that lie `stride` apart, (i, P)."""
    inside = (i < length)[:, None] & (d < SIZE)[None, :]
    place = (i - first).to(tl.int32)[:, None] * stride + d[None, :]
    tl.store(from_on(tensor, first, stride) + place, tile.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def columns(tensor, i, d, length, SIZE: tl.constexpr):
    """Load vectors that are columns of (SIZE, length), as (i, P)."""
    inside = (i < length)[:, None] & (d < SIZE)[None, :]
    return tl.load(tensor + d[None, :] * length + i[:, None], mask=inside, other=0.0)


@triton.jit
def numbers(tensor, m, block):
    """Load one number per query, (q,)."""
    return tl.load(tensor + m, mask=m < block, other=0)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """Multiply two tiles."""
    return tl.dot(a, b, input_precision=PRECISION)


# Below, m and j are positions of queries and of keys, shaped to be one dimension each of a tile: (q, 1) and (1, k), or
# (1, q) and (k, 1) where the tile is multiplied with queries. `row` is where a query's `position_scores` begin.


@triton.jit
def is_seen(m, j, block, span, reach):
    """Return which keys each query sees."""
    column = j - m
    return (column >= span - reach) & (column < span) & (m < block)


@triton.jit
def context_scores(products, given, seen):
    """Return scores in units of log 2, −inf where nothing is seen, or where all is (`seen` is None) all of them.

    `given` is loaded from `position_scores` before the products are made, so that both take their time together.
    """
    scores = (products + given.to(tl.float32)) * LOG2E
    return scores if seen is None else tl.where(seen, scores, float("-inf"))


@triton.jit
def memory_scores(products, n, memory_size):
    """Return the scores of persistent vectors in units of log 2, −inf beyond the last one."""
    return tl.where(n < memory_size, products * LOG2E, float("-inf"))


@triton.jit
def rise_of(m, j, z, ramp, span):
    """Return the height of each key on its head's ramp, in tokens: `ramp` at its top, 0 at its foot."""
    return ramp + 1 + z - (span - (j - m))


@triton.jit
def soft_mask(m, j, z, ramp, span):
    """Return what weights are multiplied by. Its logarithm among the scores would mean the same and cost more."""
    return tl.minimum(rise_of(m, j, z, ramp, span) * (1.0 / ramp), 1.0) + FLOOR


@triton.jit
def random_lines(words, m, block, plane):
    """Return a random line for each query: its slope, which is odd, and where it begins, (q,) both."""
    slope = numbers(words, m, block).to(tl.uint32, bitcast=True) | 1
    return slope, numbers(words + plane, m, block).to(tl.uint32, bitcast=True)


@triton.jit
def survives(slope, begin, place, threshold):
    """Return which weights dropout leaves.

    A place on a random line is a random number, and any two places on it are independent; one more mixing makes more
    places so. It is a third of the work of a hash of the place alone. As a function of places it gives the same answer
    in every kernel, whatever the tiles.
    """
    x = begin + slope * place.to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 16)) * 0x846CA68B
    return x.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def context_survives(slope, begin, m, j, span, threshold):
    """Return which weights of the context survive: the place of a key is minus its distance, S − (j − m)."""
    return survives(slope, begin - slope * (span + m).to(tl.uint32, bitcast=True), j, threshold)


@triton.jit
def memory_survives(slope, begin, n, threshold):
    """Return which weights of persistent vectors survive. Their places are counted from 1."""
    return survives(slope, begin + slope, n, threshold)
