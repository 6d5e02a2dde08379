"""Choose the next token from a model's probabilities."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Say how tokens are drawn.

    Attributes:
        temperature: What log-probabilities are divided by; 0 takes the most likely token.
        top_k: Draw from the k most likely tokens; None: from all.
        top_p: Draw from the fewest tokens whose probability reaches p (nucleus sampling, arXiv 1904.09751); None: all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def draw(self, log_probabilities: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a token for each text.

        Args:
            log_probabilities: log p of every token, (B, V).
            generator: On the same device.

        Returns:
            Ids, (B,).
        """
        if self.temperature == 0:
            return log_probabilities.argmax(1)
        scores = log_probabilities / self.temperature
        if self.top_k is not None and self.top_k < scores.size(1):
            least = scores.topk(self.top_k, 1).values[:, -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        if self.top_p is not None:
            scores = _nucleus(scores, self.top_p)
        return torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]


def _nucleus(scores: Tensor, share: float) -> Tensor:
    """Return the scores, (B, V), of the most likely tokens until their probabilities reach the share; else −inf."""
    ordered, places = scores.sort(1, descending=True)
    probabilities = ordered.softmax(1)
    beyond = probabilities.cumsum(1) - probabilities >= share  # what is before a token reaches the share
    return scores.masked_fill(beyond.gather(1, places.argsort(1)), float("-inf"))
