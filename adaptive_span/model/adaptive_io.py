"""Input and output layers for large vocabularies: the rarer a word, the smaller its vector.

Words are numbered by falling frequency and cut into clusters. Cluster i has vectors of size C / div^i and a projection
to C (adaptive input, arXiv 1809.10853). The output is an adaptive softmax (arXiv 1609.04309): its head scores the words
of the first cluster and one symbol for each of the others, whose words are scored only where they are the target.

Besides the letters of `adaptive_span.model`: T = B·M tokens, V_i words of cluster i.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_span.errors import UserError


def cluster_bounds(cutoffs: Sequence[int], vocab_size: int) -> list[int]:
    """Return where clusters begin, and the end of the last one: [0, *cutoffs, V].

    Args:
        cutoffs: the first word of every cluster but the first.
        vocab_size: V.

    Raises:
        UserError: if a cluster would be empty.
    """
    bounds = [0, *cutoffs, vocab_size]
    if any(low >= high for low, high in pairwise(bounds)):
        fitting = [cutoff for cutoff in cutoffs if 0 < cutoff < vocab_size] or [max(1, vocab_size // 4)]
        raise UserError(
            f"model.cutoffs={list(cutoffs)} must increase and end below the vocabulary's {vocab_size:,} words; "
            f"take model.cutoffs={sorted(set(fitting))}"
        )
    return bounds


class AdaptiveEmbedding(nn.Module):
    """Embed words with vectors that are smaller the rarer a cluster is (adaptive input, arXiv 1809.10853).

    Args:
        hidden_size: C.
        vocab_size: V.
        cutoffs: the first word of every cluster but the first.
        division: how many times smaller the vectors of each cluster are than those of the one before.

    Raises:
        UserError: if a cluster would be empty.
    """

    def __init__(self, hidden_size: int, vocab_size: int, cutoffs: Sequence[int], division: int):
        super().__init__()
        self.bounds = cluster_bounds(cutoffs, vocab_size)
        sizes = [hidden_size // division**i for i in range(len(self.bounds) - 1)]
        counts = [high - low for low, high in pairwise(self.bounds)]
        self.vectors = nn.ParameterList(torch.randn(n, size) for n, size in zip(counts, sizes, strict=True))
        self.projections = nn.ParameterList(torch.empty(hidden_size, size) for size in sizes)
        for projection in self.projections:
            _as_linear(projection, projection)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors, (B, M, C), of words (B, M), scaled by √C.

        Every token passes through every cluster, which needs no transfer to the host.
        """
        total: Tensor | float = 0.0
        clusters = zip(pairwise(self.bounds), self.vectors, self.projections, strict=True)
        for (low, high), vectors, projection in clusters:
            inside = (tokens >= low) & (tokens < high)
            vector = F.embedding(torch.where(inside, tokens - low, 0), vectors) * inside[..., None]
            total = total + F.linear(vector, projection)
        assert isinstance(total, Tensor)
        return total * math.sqrt(total.size(2))


class AdaptiveSoftmax(nn.Module):
    """Compute log p(word) = log p(cluster) + log p(word | cluster) (adaptive softmax, arXiv 1609.04309).

    PyTorch's own `AdaptiveLogSoftmaxWithLoss` can't express it: its tails have no biases, its head no projection, and
    neither can share the input's vectors.

    Args:
        hidden_size: C.
        vocab_size: V.
        cutoffs: the first word of every cluster but the first.
        division: how many times smaller the vectors of each cluster are than those of the one before.
        tied_to: the input whose vectors and projections the output shares; None for its own.

    Raises:
        UserError: if a cluster would be empty.
    """

    cutoffs: Tensor

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        cutoffs: Sequence[int],
        division: int,
        tied_to: AdaptiveEmbedding | None = None,
    ):
        super().__init__()
        self.embedding = tied_to or AdaptiveEmbedding(hidden_size, vocab_size, cutoffs, division)
        self.bounds = self.embedding.bounds
        self.biases = nn.ParameterList(torch.empty(len(vectors)) for vectors in self.embedding.vectors)
        for bias, vectors in zip(self.biases, self.embedding.vectors, strict=True):
            _as_linear(bias, vectors)
            if tied_to is None:
                _as_linear(vectors, vectors)
        self.clusters = nn.Linear(hidden_size, len(cutoffs))
        self.register_buffer("cutoffs", torch.tensor(self.bounds[1:-1]), persistent=False)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the negative log-likelihood of every target, which costs one transfer to the host.

        Args:
            hidden: (B, M, C).
            targets: words, (B, M).

        Returns:
            Nats, (B, M).
        """
        flat, wanted = hidden.flatten(0, 1), targets.flatten()  # (T, C), (T,)
        cluster = torch.bucketize(wanted, self.cutoffs, right=True)
        order = cluster.argsort(stable=True)
        counts = cluster.bincount(minlength=len(self.bounds) - 1).tolist()  # the one transfer to the host
        head = self._head(flat).log_softmax(1)
        # Tail cluster i has the head's logit −i, counted from the end.
        symbol = torch.where(cluster == 0, wanted, head.size(1) - cluster)
        nll = -head.gather(1, symbol[:, None]).squeeze(1)  # (T,)
        # A cluster without targets is computed too, on no rows: its parameters have a gradient (0) in every step.
        for index, rows in enumerate(order.split(counts)[1:], start=1):
            tail = self._tail(flat[rows], index)
            own = F.cross_entropy(tail, wanted[rows] - self.bounds[index], reduction="none")
            nll = nll.index_add(0, rows, own.to(nll.dtype))
        return nll.view_as(targets)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Return log p of every word, (B, M, V), from hidden states (B, M, C)."""
        head, words = self._head(hidden).log_softmax(-1), self.bounds[1]
        parts = [head[..., :words]]
        for index in range(1, len(self.bounds) - 1):
            parts.append(head[..., head.size(-1) - index, None] + self._tail(hidden, index).log_softmax(-1))
        return torch.cat(parts, dim=-1)

    def _head(self, hidden: Tensor) -> Tensor:
        """Return the logits of the first cluster's words and of the tails, (…, V_0 + tails), from (…, C)."""
        projected = self._project(hidden, 0)
        words = F.linear(projected, self.embedding.vectors[0], self.biases[0])
        return torch.cat([words, self.clusters(projected)], dim=-1)

    def _tail(self, hidden: Tensor, index: int) -> Tensor:
        """Return the logits of a tail's words, (…, V_index), from (…, C)."""
        return F.linear(self._project(hidden, index), self.embedding.vectors[index], self.biases[index])

    def _project(self, hidden: Tensor, index: int) -> Tensor:
        """Project (…, C) to the size of a cluster's vectors, (…, C / div^index)."""
        return F.linear(hidden, self.embedding.projections[index].t())


@torch.no_grad()
def _as_linear(parameter: Tensor, weight: Tensor) -> None:
    """Initialise as `nn.Linear` does its weight, or the bias beside that weight."""
    bound = weight.size(1) ** -0.5
    parameter.uniform_(-bound, bound)
