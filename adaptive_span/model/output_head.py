"""The output layer of a vocabulary that is scored whole."""

import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_span.attention.layout import as_rows, is_positions_first


class OutputHead(nn.Linear):
    """Score every symbol of the vocabulary: a linear layer and a softmax.

    `AdaptiveSoftmax` is the same for large vocabularies.
    """

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the negative log-likelihood of every target.

        Args:
            hidden: (B, M, C).
            targets: ids of symbols, (B, M).

        Returns:
            Nats, (B, M).
        """
        targets = targets.t() if (first := is_positions_first(hidden)) else targets
        nll = F.cross_entropy(self(as_rows(hidden)), targets.flatten(), reduction="none").view(targets.shape)
        return nll.t() if first else nll

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Return log p of every symbol, (B, M, V), from hidden states (B, M, C)."""
        logits: Tensor = self(hidden)
        return logits.log_softmax(-1)
