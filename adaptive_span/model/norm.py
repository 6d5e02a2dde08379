"""The norms of blocks: LayerNorm (arXiv 1607.06450) as published, or RMSNorm (arXiv 1910.07467)."""

from torch import nn

from adaptive_span.config.model_schema import ModelConfig

EPSILON = 1e-5  # of both, as in the published models
Norm = nn.LayerNorm | nn.RMSNorm


def norm(config: ModelConfig) -> Norm:
    """Return a norm of hidden states, as `model.norm_kind` says."""
    kind = nn.RMSNorm if config.norm_kind == "rms" else nn.LayerNorm
    return kind(config.hidden_size, eps=EPSILON)
