"""Floating-point operations of a forward pass, two per multiply-add, from the present span of each head.

Only matrix products count. A token's key and value count once, as when a text is predicted token by token; what
training adds by projecting the cache again in every block is the price of its cache, not of the model.
"""

from collections.abc import Sequence

from adaptive_span.config.model_schema import ModelConfig

TRAINING = 3  # times a forward pass: the backward pass costs two
Spans = Sequence[Sequence[float]]  # effective, in tokens, for each layer and head


def forward(config: ModelConfig, vocab_size: int, spans: Spans) -> dict[str, float]:
    """Count what it takes to predict one token.

    Of an adaptive softmax the head counts, which every token passes through. The tails, for rare words alone, do not.

    Args:
        config: sizes.
        vocab_size: V.
        spans: effective spans in tokens, (N, H).

    Returns:
        Operations by part of the model.
    """
    size, head_size, layers = config.hidden_size, config.head_size, config.num_layers
    seen = sum(sum(heads) for heads in spans)  # over all heads, tokens
    memory = layers * config.num_heads * config.memory_size
    bounds = [0, *config.cutoffs, vocab_size]
    embedding = sum(size // config.division**i for i in range(len(bounds) - 1)) if config.cutoffs else 0
    head = size * size + size * (config.cutoffs[0] + len(config.cutoffs)) if config.cutoffs else size * vocab_size
    multiply_adds = {
        "input": size * embedding,
        "projections": layers * 4 * size * size,
        "scores": head_size * seen,
        "positions": head_size * seen,
        "values": head_size * seen,
        "memory": 2 * head_size * memory,
        "feed_forward": layers * config.ffn_matrices * size * config.ffn_size,
        "output": head,
    }
    return {part: 2.0 * count for part, count in multiply_adds.items()}


def training(operations: dict[str, float], is_frozen: bool) -> float:
    """Count what it takes to learn from one token.

    Args:
        operations: Of a forward pass, by part.
        is_frozen: Whether weights are frozen. Then a product with a weight has one gradient to compute, not two.
    """
    backward = {part: 2 if part in ("scores", "values") or not is_frozen else 1 for part in operations}
    return sum((1 + backward[part]) * count for part, count in operations.items())


def comparison(config: ModelConfig, vocab_size: int, spans: Spans) -> dict[str, float]:
    """Count what it takes to predict one token, with learned spans and without.

    Args:
        config: sizes.
        vocab_size: V.
        spans: effective spans in tokens, (N, H).

    Returns:
        Operations with these spans, with every head as long as its layer's longest, and with every head at the maximum.
    """
    alike = {
        "learned_spans": spans,
        "longest_head_of_each_layer": [[max(heads)] * len(heads) for heads in spans],
        "maximum_span": [[config.max_span] * len(heads) for heads in spans],
    }
    return {name: sum(forward(config, vocab_size, each).values()) for name, each in alike.items()}
