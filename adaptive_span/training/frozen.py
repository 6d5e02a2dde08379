"""Train the spans alone."""

from torch import nn

from adaptive_span.attention.span import AdaptiveSpan


def freeze_weights(model: nn.Module) -> None:
    """Let nothing of a model learn but its spans."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, AdaptiveSpan):
            module.requires_grad_(True)
