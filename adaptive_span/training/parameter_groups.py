"""Which parameters an optimizer treats alike: the matrices of the hidden layers, the spans, and all others."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

Named = list[tuple[str, Tensor]]


def split(named: Iterable[tuple[str, Tensor]]) -> tuple[Named, Named, Named]:
    """Return the matrices of attention and feed-forward blocks, the spans, and the others: embeddings, norms, biases.

    Args:
        named: parameters by their names in a `Transformer`.
    """
    matrices: Named = []
    spans: Named = []
    others: Named = []
    for name, parameter in named:
        hidden = name.startswith(("attention_blocks.", "feed_forward_blocks."))
        kind = spans if name.endswith(".span.fraction") else matrices if hidden and parameter.dim() == 2 else others
        kind.append((name, parameter))
    return matrices, spans, others


def group(parameters: Named, lr: float | Tensor, factor: float, **options: Any) -> list[dict[str, Any]]:
    """Return a group of an optimizer whose rate is `factor` times that of the schedule, or none without parameters."""
    rate = lr * factor  # on a GPU a tensor of its own, which `optimizer.set_rate` fills
    return [{"params": parameters, "lr": rate, "factor": factor, **options}] if parameters else []
