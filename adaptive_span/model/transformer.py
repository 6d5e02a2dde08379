"""The Transformer of arXiv 1905.07799 and the all-attention network of 1907.01470.

Blocks whose heads learn how far to look lie between an embedding and an output layer.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from adaptive_span.attention import layout
from adaptive_span.attention.context import join
from adaptive_span.attention.span import AdaptiveSpan, upper_bound
from adaptive_span.attention.span_bounds import SpanBounds
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.model.adaptive_io import AdaptiveEmbedding, AdaptiveSoftmax
from adaptive_span.model.blocks import AttentionBlock, FeedForwardBlock
from adaptive_span.model.cache import AnyCache, HiddenStateCache, KeyValueCache, cache_length
from adaptive_span.model.elementwise import Hidden, normalized, with_operand
from adaptive_span.model.embedding import Embedding
from adaptive_span.model.norm import norm
from adaptive_span.model.output_head import OutputHead

if TYPE_CHECKING:
    from adaptive_span.model.sampling import Sampling

Past = TypeVar("Past", Tensor, list[Tensor])  # what a cache holds of one layer


class Transformer(nn.Module):
    """Predict each next token of a text that is read block by block.

    The cache of earlier positions is handed in and out. Nothing of the text is kept in the module.

    Args:
        config: sizes, spans, dropout, order of the blocks, and the implementation of attention.
        vocab_size: V.
        activation_checkpointing: compute blocks again in the backward pass instead of keeping their activations.

    Raises:
        UserError: if a value of `config` is not allowed, or `config.cutoffs` do not fit the vocabulary.
    """

    positions: nn.Parameter  # its name in checkpoints: in here it is `position_embedding`

    def __init__(self, config: ModelConfig, vocab_size: int, activation_checkpointing: bool = False):
        super().__init__()
        config.validate()
        self.config = config
        self.vocab_size = vocab_size
        self.activation_checkpointing = activation_checkpointing
        self.embedding, self.output = _input_and_output(config, vocab_size)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.positions = nn.Parameter(torch.randn(config.head_size, config.max_span))
        self.first_norm = norm(config) if config.norm == "pre" else None
        self.order = config.block_order()
        self.attention_blocks = nn.ModuleList(AttentionBlock(config) for _ in range(self.order.count("a")))
        self.feed_forward_blocks = nn.ModuleList(FeedForwardBlock(config) for _ in range(self.order.count("f")))
        self._spans = [m for m in self.modules() if isinstance(m, AdaptiveSpan)]

    @property
    def position_embedding(self) -> Tensor:
        """Return one learned vector per distance, oldest first, (D, L): all heads and layers share it."""
        return self.positions

    def forward(
        self, tokens: Tensor, targets: Tensor, cache: AnyCache, span_bounds: SpanBounds | None = None
    ) -> tuple[Tensor, AnyCache]:
        """Return the negative log-likelihood of every target, and the cache for the next block.

        Args:
            tokens: ids of the present block, (B, M), integers.
            targets: ids of the tokens after them, (B, M).
            cache: what the last call returned, or `empty_cache`, or `empty_inference_cache`.
            span_bounds: tokens that the effective span of each layer and head does not exceed, (N, H). Where not given,
                they are read off the spans, which costs one transfer to the host.

        Returns:
            Nats, (B, M), and a cache of the same kind.

        Raises:
            RuntimeError: if gradients are enabled with an inference cache.
        """
        hidden, cache = self.hidden_states(tokens, cache, span_bounds)
        return self.output.nll(hidden, targets), cache

    def log_probabilities(
        self, tokens: Tensor, cache: AnyCache, span_bounds: SpanBounds | None = None
    ) -> tuple[Tensor, AnyCache]:
        """Return log p(next token) after each token, (B, M, V), and the cache for the next block. See `forward`."""
        hidden, cache = self.hidden_states(tokens, cache, span_bounds)
        return self.output.log_probabilities(hidden), cache

    def hidden_states(
        self, tokens: Tensor, cache: AnyCache, span_bounds: SpanBounds | None = None
    ) -> tuple[Tensor, AnyCache]:
        """Return what the output layer reads, (B, M, C), and the cache for the next block. See `forward`."""
        span_bounds = self.span_bounds() if span_bounds is None else span_bounds
        if layout.puts_positions_first(tokens.device):
            vectors = self.embedding(tokens.t()).transpose(0, 1)  # (B, M, C)
        else:
            vectors = self.embedding(tokens)
        vectors = self.embedding_dropout(vectors)
        hidden = with_operand(vectors) if self.first_norm is None else normalized(vectors, self.first_norm, is_pre=True)
        if isinstance(cache, KeyValueCache):
            hidden, keys_values = self._blocks(hidden, cache.layers, span_bounds, self._infer)
            return self.embedding_dropout(hidden.operand), KeyValueCache(keys_values)
        hidden, states = self._blocks(hidden, cache.layers, span_bounds, self._attend)
        return self.embedding_dropout(hidden.operand), HiddenStateCache(states)

    def generate(
        self, tokens: Tensor, length: int, sampling: "Sampling | None" = None, seed: int = 1, graphs: bool = False
    ) -> Tensor:
        """Continue texts, one token of each at a time, at the cost of what each head sees.

        Args:
            tokens: ids of the texts' beginnings, (B, M), M ≥ 1.
            length: tokens to add to each.
            sampling: how tokens are drawn; by their probabilities where not given.
            seed: of the draws.
            graphs: whether a step is recorded as a CUDA graph.

        Returns:
            Ids, (B, length).

        Raises:
            UserError: if the model's attention is not known to compute what the project's own does.
        """
        from adaptive_span.model import generation  # which reads this module

        return torch.stack(list(generation.stream(self, tokens, length, sampling, seed, graphs)), dim=1)

    def _blocks(
        self,
        hidden: Hidden,
        pasts: Sequence[Past],
        span_bounds: SpanBounds,
        attend: Callable[[nn.Module, Hidden, Past, Sequence[int]], tuple[Hidden, Past]],
    ) -> tuple[Hidden, list[Past]]:
        """Run all blocks in their order, and return what each attention layer keeps for the next block of text."""
        attention = zip(self.attention_blocks, pasts, span_bounds, strict=True)
        feed_forward = iter(self.feed_forward_blocks)
        next_pasts: list[Past] = []
        for kind in self.order:
            if kind == "f":
                hidden = self._run(next(feed_forward), hidden)
            else:
                block, past, bounds = next(attention)
                hidden, next_past = attend(block, hidden, past, bounds)
                next_pasts.append(next_past)
        return hidden, next_pasts

    def _attend(self, block: nn.Module, hidden: Hidden, past: Tensor, bounds: Sequence[int]) -> tuple[Hidden, Tensor]:
        """Run an attention block on hidden states of the past, (B, T, C), and return those of the next past."""
        kept = self.cache_length(bounds)
        states = join(past, hidden.operand, max(*bounds, kept - hidden.operand.size(1)))
        return self._run(block, hidden, states, self.position_embedding, bounds), states[:, -kept:]

    def _infer(
        self, block: nn.Module, hidden: Hidden, past: list[Tensor], bounds: Sequence[int]
    ) -> tuple[Hidden, list[Tensor]]:
        """Run an attention block on keys and values of the past, and return those of the next past."""
        assert isinstance(block, AttentionBlock)
        return block.infer(hidden, past, self.position_embedding, bounds)

    def _run(self, block: nn.Module, *inputs: object) -> Hidden:
        """Run a block, with activation checkpointing where it is wanted."""
        if not self.activation_checkpointing or not torch.is_grad_enabled():
            output: Hidden = block(*inputs)
        elif not self.position_embedding.is_cuda:
            output = checkpoint(block, *inputs, use_reentrant=False)
        else:
            # While a graph is recorded, no generator can be put back. What it drew is kept: two words per query.
            keep = functools.partial(create_selective_checkpoint_contexts, _kept_or_not)
            output = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=keep)
        return output

    def cache_length(self, span_bounds: Sequence[int]) -> int:
        """Return how many tokens the cache of a layer with these bounds on its heads' spans keeps."""
        return cache_length(self.config, span_bounds)

    def empty_cache(self, batch_size: int) -> HiddenStateCache:
        """Return the cache of a text's start, for training.

        Args:
            batch_size: B, the rows that are read side by side.
        """
        empty = [
            self.position_embedding.new_zeros(batch_size, 0, self.config.hidden_size) for _ in self.attention_blocks
        ]
        return HiddenStateCache(empty)

    def empty_inference_cache(self) -> KeyValueCache:
        """Return the KV cache of a text's start, for use without gradients while weights and bounds do not change."""
        return KeyValueCache([[] for _ in self.attention_blocks])

    def spans(self) -> Tensor:
        """Return the effective span of every head, min(L, z + R) tokens, (N, H), on the model's device."""
        if not self._spans:
            shape = (self.config.num_layers, self.config.num_heads)
            return torch.full(shape, float(self.config.max_span), device=self.position_embedding.device)
        fractions = torch.stack([span.fraction.detach() for span in self._spans])  # (N, H)
        return (fractions * self.config.max_span + self.config.ramp).clamp(max=self.config.max_span)

    def span_bounds(self, spans: Sequence[Sequence[float]] | None = None, slack: float = 0.0) -> SpanBounds:
        """Return bounds on the effective spans, known to the host.

        Args:
            spans: effective spans in tokens, (N, H), where the caller has them on the host already. Else they are read
                off the device.
            slack: tokens that a span may grow by within its bound.

        Returns:
            Whole numbers of tokens, (N, H).
        """
        spans = self.spans().tolist() if spans is None else spans
        return [[upper_bound(span + slack, self.config.max_span) for span in heads] for heads in spans]

    def span_penalty(self) -> Tensor:
        """Return the price of the spans: the sum over the layers of the mean of z over the heads, in tokens.

        It is the second term of the loss (arXiv 1905.07799, section 2) without its coefficient.
        """
        if not self._spans:
            return self.position_embedding.new_zeros(())
        fractions = torch.stack([span.fraction for span in self._spans])  # (N, H)
        return (fractions * self.config.max_span).mean(1).sum()

    def highest_fractions(self, span_bounds: SpanBounds) -> Tensor:
        """Return the span parameters with which each head sees just as far as its bound.

        Args:
            span_bounds: tokens, (N, H).

        Returns:
            Fractions of L, (N, H), on the model's device.
        """
        longest, ramp = self.config.max_span, self.config.ramp
        highest = [[(x - ramp) / longest if x < longest else 1.0 for x in heads] for heads in span_bounds]
        return torch.tensor(highest, device=self.position_embedding.device)

    @torch.no_grad()
    def clamp_spans_(self, highest: Tensor | None = None) -> None:
        """Bring every span back to at least 0 and at most the maximum. Call it after each update.

        Args:
            highest: `highest_fractions` of bounds that no span may exceed, (N, H), in place of the maximum.
        """
        fractions: list[Tensor] = [span.fraction for span in self._spans]
        if not fractions:
            return
        torch._foreach_clamp_min_(fractions, 0.0)
        if highest is None:
            torch._foreach_clamp_max_(fractions, 1.0)
        else:
            torch._foreach_clamp_max_(fractions, list(highest.unbind()))


def _kept_or_not(context: Any, operation: Any, *inputs: Any, **named: Any) -> CheckpointPolicy:
    """Keep random numbers for the backward pass, and compute all else again."""
    drawn = torch.Tag.nondeterministic_seeded in operation.tags
    return CheckpointPolicy.MUST_SAVE if drawn else CheckpointPolicy.PREFER_RECOMPUTE


def _input_and_output(config: ModelConfig, vocab_size: int) -> tuple[nn.Module, OutputHead | AdaptiveSoftmax]:
    size = config.hidden_size
    if not config.cutoffs:
        table, head = Embedding(vocab_size, size, is_shared=config.tied_output), OutputHead(size, vocab_size)
        if config.tied_output:
            head.weight = table.weight
        return table, head
    embedding = AdaptiveEmbedding(size, vocab_size, config.cutoffs, config.division)
    tied_to = embedding if config.tied else None
    return embedding, AdaptiveSoftmax(size, vocab_size, config.cutoffs, config.division, tied_to)
