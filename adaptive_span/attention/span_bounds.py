"""Bounds on the effective spans: what the host knows of them, and gives tensors their sizes by.

Spans live on the device and change with every update. Their bounds change rarely, since a change of size is a new
recording of the step as a CUDA graph: they keep some room above the spans, and are renewed all together when a span
comes close to its bound, or when the room has become a waste.
"""

from collections.abc import Sequence

STEP = 16  # tokens: what a bound is a multiple of, so that the kernels' loads are aligned
CLOSE = 2  # tokens: spans in published trainings grow by less than one in an update
ROOM = (8, 1 / 32)  # tokens, or that share of the span where it is more
WASTE = 1.05  # times the work that fresh bounds would be

SpanBounds = Sequence[Sequence[int]]  # tokens that no effective span exceeds, of each layer and head, (N, H)
Spans = Sequence[Sequence[float]]  # effective spans in tokens, likewise


def fresh(spans: Spans, max_span: int) -> SpanBounds:
    """Return bounds with room for every span to grow.

    Args:
        spans: effective spans in tokens, (N, H).
        max_span: L, in tokens.
    """
    return [[_above(span, max_span) for span in heads] for heads in spans]


def renewed(bounds: SpanBounds, spans: Spans, max_span: int, block_size: int) -> SpanBounds:
    """Return the bounds of the next step: the present ones as long as they serve, else fresh ones.

    Args:
        bounds: the present ones, (N, H), in tokens; empty where a training begins.
        spans: effective spans in tokens, (N, H).
        max_span: L, in tokens.
        block_size: M, in tokens.
    """
    better = fresh(spans, max_span)
    if not bounds or work(bounds, block_size) > WASTE * work(better, block_size):
        return better
    pairs = [pair for heads in zip(spans, bounds, strict=True) for pair in zip(*heads, strict=True)]
    return better if any(span + CLOSE > bound < max_span for span, bound in pairs) else bounds


def _above(span: float, max_span: int) -> int:
    room, share = ROOM
    needed = span + max(room, share * span)
    return min(max_span, -int(-needed // STEP) * STEP)


def work(bounds: SpanBounds, block_size: int) -> int:
    """Return what attention costs within these bounds, for comparison.

    A head's keys and values at its bound and the block cost about as much as the weights of a block's queries.
    """
    return sum(2 * bound + block_size for heads in bounds for bound in heads)
