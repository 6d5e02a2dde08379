"""The Transformer of arXiv 1905.07799 and the all-attention network of 1907.01470: post-norm blocks whose heads learn
how far to look, and a cache of the past.

B batch, M block, C hidden size, H heads, D = C / H head size, L maximum span, N layers, V vocabulary, T cached tokens.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from adaptive_span.attention import Context, HiddenStates, KeysValues, choose, join, layout
from adaptive_span.attention.layout import as_rows, is_positions_first, out_of_rows
from adaptive_span.attention.span import AdaptiveSpan, upper_bound
from adaptive_span.config.schema import ModelConfig
from adaptive_span.model.adaptive_io import AdaptiveEmbedding, AdaptiveSoftmax
from adaptive_span.model.elementwise import Hidden, add_and_norm, feed_forward, with_operand
from adaptive_span.model.embedding import Embedding
from adaptive_span.model.persistent_memory import PersistentMemory

# For each layer what it keeps of earlier positions: its inputs, detached, (B, T, C), as precise as they are multiplied;
# or, for inference, the keys and values of each group of heads.
Cache = list[Any]
Limits = Sequence[Sequence[int]]  # for each layer and head: tokens that its effective span does not exceed

CACHE_STEP = 64  # tokens: a cache holds the longest span rounded up, and one step more for a span to grow into


def linear(layer: nn.Linear, states: Tensor) -> Tensor:
    """Return layer(states), (B, M, C), without a copy of what lies positions first."""
    return out_of_rows(layer(as_rows(states)), states)


class AdaptiveSpanAttention(nn.Module):
    """Multi-head attention, each head as far as its own span; no biases, and no query sees itself."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.max_span = config.max_span
        self.ramp = config.ramp
        self.dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.attend = choose(config.attention)
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)
        self.output = nn.Linear(size, size, bias=False)
        self.span = (
            AdaptiveSpan(config.num_heads, config.max_span, config.ramp, config.span_init)
            if config.adaptive_span
            else None
        )
        self.memory = (
            PersistentMemory(config.num_heads, config.head_size, config.memory_size) if config.memory_size else None
        )

    def forward(self, hidden: Tensor, states: Tensor, positions: Tensor, limits: Sequence[int]) -> Tensor:
        """hidden (B, M, C), positions (D, L) → (B, M, C). `states` (B, T, C): the past, joined with `hidden`."""
        return self._attend(HiddenStates(states, hidden, self._weights(), self.num_heads), positions, limits)

    def infer(
        self, hidden: Tensor, past: list[Tensor], positions: Tensor, limits: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """The same without gradients, from past keys and values; and those of the next block's past."""
        context = KeysValues(past, hidden, self._weights(), self.num_heads)
        return self._attend(context, positions, limits), context.kept

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query.weight, self.key.weight, self.value.weight

    def _attend(self, context: Context, positions: Tensor, limits: Sequence[int]) -> Tensor:
        heads = self.attend(
            context,
            positions,
            self.span.tokens() if self.span is not None else None,
            self.ramp,
            limits,
            self.dropout if self.training else 0.0,
            self.memory() if self.memory is not None else None,
        )  # (B, M, H, D)
        return linear(self.output, heads.flatten(2))


class AttentionBlock(nn.Module):
    """h = LN(h + Attention(h))"""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = AdaptiveSpanAttention(config)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, hidden: Hidden, states: Tensor, positions: Tensor, limits: Sequence[int]) -> Hidden:
        attended = self.attention(hidden.operand, states, positions, limits)
        return add_and_norm(hidden.exact, attended, self.norm)

    def infer(
        self, hidden: Hidden, past: list[Tensor], positions: Tensor, limits: Sequence[int]
    ) -> tuple[Hidden, list[Tensor]]:
        attended, kept = self.attention.infer(hidden.operand, past, positions, limits)
        return add_and_norm(hidden.exact, attended, self.norm), kept


class FeedForwardBlock(nn.Module):
    """h = LN(h + W₂ dropout(ReLU(W₁ h)))"""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.ffn_size)
        self.contract = nn.Linear(config.ffn_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout if config.ffn_dropout is None else config.ffn_dropout)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, hidden: Hidden) -> Hidden:
        dropout = self.dropout.p if self.training else 0.0
        return feed_forward(hidden, self.expand, self.contract, dropout, self.norm)


class Softmax(nn.Linear):
    """The output layer of a vocabulary that is scored whole."""

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(B, M, C), (B, M) → nats of every target, (B, M)."""
        targets = targets.t() if (first := is_positions_first(hidden)) else targets
        nll = F.cross_entropy(self(as_rows(hidden)), targets.flatten(), reduction="none").view(targets.shape)
        return nll.t() if first else nll

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """(B, M, C) → (B, M, V)"""
        return self(hidden).log_softmax(-1)


class Transformer(nn.Module):
    """Predicts each next token. The cache is handed in and out; nothing of the text is kept in the module."""

    def __init__(self, config: ModelConfig, vocab_size: int, activation_checkpointing: bool = False):
        super().__init__()
        config.validate()
        self.config = config
        self.vocab_size = vocab_size
        self.activation_checkpointing = activation_checkpointing
        self.embedding, self.output = _input_and_output(config, vocab_size)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.positions = nn.Parameter(torch.randn(config.head_size, config.max_span))
        self.order = config.block_order()
        self.attention_blocks = nn.ModuleList(AttentionBlock(config) for _ in range(self.order.count("a")))
        self.feed_forward_blocks = nn.ModuleList(FeedForwardBlock(config) for _ in range(self.order.count("f")))
        self._spans = [m for m in self.modules() if isinstance(m, AdaptiveSpan)]

    def forward(
        self, tokens: Tensor, targets: Tensor, cache: Cache, limits: Limits | None = None
    ) -> tuple[Tensor, Cache]:
        """The negative log-likelihood of every target, in nats, and the cache for the next block.

        tokens, targets (B, M), integers. `limits` are read off the spans (one transfer to the host) where not given.
        """
        hidden, cache = self.hidden_states(tokens, cache, limits)
        return self.output.nll(hidden, targets), cache

    def log_probabilities(self, tokens: Tensor, cache: Cache, limits: Limits | None = None) -> tuple[Tensor, Cache]:
        """log p(next token) after each token, (B, M, V), and the cache for the next block."""
        hidden, cache = self.hidden_states(tokens, cache, limits)
        return self.output.log_probabilities(hidden), cache

    def hidden_states(self, tokens: Tensor, cache: Cache, limits: Limits | None = None) -> tuple[Tensor, Cache]:
        """What the output layer reads, (B, M, C), and the cache for the next block."""
        limits = self.limits() if limits is None else limits
        if layout.puts_positions_first(tokens.device):
            vectors = self.embedding(tokens.t()).transpose(0, 1)
        else:
            vectors = self.embedding(tokens)
        hidden = with_operand(self.embedding_dropout(vectors))
        new_cache: Cache = []
        attention: Iterator[Any] = zip(self.attention_blocks, cache, limits, strict=True)
        feed_forward = iter(self.feed_forward_blocks)
        for kind in self.order:
            if kind == "f":
                hidden = self._run(next(feed_forward), hidden)
                continue
            block, past, heads = next(attention)
            if isinstance(past, Tensor):
                keep = self.cache_length(heads)
                states = join(past, hidden.operand, max(*heads, keep - tokens.size(1)))
                new_cache.append(states[:, -keep:])
                hidden = self._run(block, hidden, states, self.positions, heads)
            else:
                hidden, kept = block.infer(hidden, past, self.positions, heads)
                new_cache.append(kept)
        return self.embedding_dropout(hidden.operand), new_cache

    def _run(self, block: nn.Module, *inputs: object) -> Hidden:
        if not self.activation_checkpointing or not torch.is_grad_enabled():
            return block(*inputs)
        if not self.positions.is_cuda:
            return checkpoint(block, *inputs, use_reentrant=False)
        # While a graph is recorded, no generator can be put back: what it drew is kept instead, two words for a query.
        keep = functools.partial(create_selective_checkpoint_contexts, _kept_or_not)
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=keep)

    def cache_length(self, limits: Sequence[int]) -> int:
        return cache_length(self.config, limits)

    def empty_cache(self, batch_size: int) -> Cache:
        """The start of a stream. What a cache does not hold counts as zero hidden states."""
        return [self.positions.new_zeros(batch_size, 0, self.config.hidden_size) for _ in self.attention_blocks]

    def empty_inference_cache(self) -> Cache:
        """The start of a stream whose keys and values are projected once: for use without gradients, while neither the
        weights nor `limits` change."""
        return [[] for _ in self.attention_blocks]

    def spans(self) -> Tensor:
        """The effective span of every head, in tokens: (N, H), on the model's device."""
        if not self._spans:
            shape = (self.config.num_layers, self.config.num_heads)
            return torch.full(shape, float(self.config.max_span), device=self.positions.device)
        fractions = torch.stack([span.fraction.detach() for span in self._spans])  # (N, H)
        return (fractions * self.config.max_span + self.config.ramp).clamp(max=self.config.max_span)

    def limits(self, spans: Sequence[Sequence[float]] | None = None, slack: float = 0.0) -> Limits:
        """Host-side bounds on the effective spans, and `slack` tokens more; from `spans` where the caller has them on
        the host already."""
        spans = self.spans().tolist() if spans is None else spans
        return [[upper_bound(span + slack, self.config.max_span) for span in heads] for heads in spans]

    def span_penalty(self) -> Tensor:
        """The sum over the layers of the mean span over the heads, in tokens (equation 5 without its coefficient)."""
        if not self._spans:
            return self.positions.new_zeros(())
        fractions = torch.stack([span.fraction for span in self._spans])  # (N, H)
        return (fractions * self.config.max_span).mean(1).sum()

    def highest_fractions(self, limits: Limits) -> Tensor:
        """Return the span parameters with which each head sees just as far as `limits` say, (N, H), on the model's
        device."""
        longest, ramp = self.config.max_span, self.config.ramp
        highest = [[(x - ramp) / longest if x < longest else 1.0 for x in heads] for heads in limits]
        return torch.tensor(highest, device=self.positions.device)

    @torch.no_grad()
    def clamp_spans_(self, highest: Tensor | None = None) -> None:
        """To be called after every update: no span below 0 or beyond the maximum; nor, where they are given, beyond
        `highest_fractions`."""
        fractions: list[Tensor] = [span.fraction for span in self._spans]
        if not fractions:
            return
        torch._foreach_clamp_min_(fractions, 0.0)
        if highest is None:
            torch._foreach_clamp_max_(fractions, 1.0)
        else:
            torch._foreach_clamp_max_(fractions, list(highest.unbind()))


def _kept_or_not(context: Any, operation: Any, *inputs: Any, **named: Any) -> CheckpointPolicy:
    """Return that random numbers are kept for the backward pass, and all else is computed again."""
    drawn = torch.Tag.nondeterministic_seeded in operation.tags
    return CheckpointPolicy.MUST_SAVE if drawn else CheckpointPolicy.PREFER_RECOMPUTE


def cache_length(config: ModelConfig, limits: Sequence[int]) -> int:
    """Return how many tokens a layer's cache keeps: as far as its longest head sees, and some to spare."""
    if not config.trim_cache:
        return config.max_span
    return min(-(-max(limits) // CACHE_STEP) * CACHE_STEP + CACHE_STEP, config.max_span)


def _input_and_output(config: ModelConfig, vocab_size: int) -> tuple[nn.Module, Softmax | AdaptiveSoftmax]:
    size = config.hidden_size
    if not config.cutoffs:
        return Embedding(vocab_size, size), Softmax(size, vocab_size)
    embedding = AdaptiveEmbedding(size, vocab_size, config.cutoffs, config.division)
    tied_to = embedding if config.tied else None
    return embedding, AdaptiveSoftmax(size, vocab_size, config.cutoffs, config.division, tied_to)
