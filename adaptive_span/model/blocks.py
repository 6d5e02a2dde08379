"""The two kinds of blocks: attention whose heads learn how far to look, and feed-forward.

Post-norm a block ends in the norm of its sum. Pre-norm its norm is what the next block reads of the sum, so both have
one form; `Transformer.first_norm` is what the first block reads.

The definitions are those of arXiv 1905.07799, section 2, and of 1907.01470, section 4, for persistent memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaptive_span.attention import Attended, Context, SpanGeometry
from adaptive_span.attention.context import HiddenStates, KeysValues, next_past
from adaptive_span.attention.dispatch import choose
from adaptive_span.attention.layout import as_rows, out_of_rows
from adaptive_span.attention.span import AdaptiveSpan
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.model.elementwise import FeedForward, Hidden, add_and_norm, feed_forward
from adaptive_span.model.norm import norm
from adaptive_span.model.persistent_memory import PersistentMemory


def linear(layer: nn.Linear, states: Tensor) -> Tensor:
    """Return layer(states), (B, M, C), without a copy of what lies positions first."""
    return out_of_rows(layer(as_rows(states)), states)


class AdaptiveSpanAttention(nn.Module):
    """Attend with several heads, each as far as its own learned span (arXiv 1905.07799, section 2).

    No projection has biases, and no query sees itself.

    Args:
        config: sizes, spans, dropout and the implementation of attention.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.max_span = config.max_span
        self.ramp = config.ramp
        self.dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.qk_norm = config.qk_norm
        self.attend = choose(config.attention)
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)
        self.output = begin(nn.Linear(size, size, bias=False), config)
        self.span = (
            AdaptiveSpan(config.num_heads, config.max_span, config.ramp, config.span_init)
            if config.adaptive_span
            else None
        )
        self.memory = (
            PersistentMemory(config.num_heads, config.head_size, config.memory_size) if config.memory_size else None
        )

    def forward(self, hidden: Tensor, states: Tensor, position_embedding: Tensor, span_bounds: Sequence[int]) -> Tensor:
        """Attend from hidden states to those of the past, with gradients.

        Args:
            hidden: the present block, (B, M, C).
            states: the past, joined with `hidden` by `adaptive_span.attention.context.join`, (B, T, C).
            position_embedding: one vector per distance, oldest first, (D, L).
            span_bounds: tokens that the effective span of each head does not exceed.

        Returns:
            (B, M, C).
        """
        context = HiddenStates(states, hidden, self._weights(), self.num_heads, self.qk_norm)
        return self._project(self._attend(context, position_embedding, span_bounds).output)

    def infer(
        self, hidden: Tensor, past: list[Tensor], position_embedding: Tensor, span_bounds: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Attend from hidden states to kept keys and values, without gradients.

        Args:
            hidden: the present block, (B, M, C).
            past: keys and values that this method returned for the block before, with the same `span_bounds`; empty at
                the start of a text.
            position_embedding: one vector per distance, oldest first, (D, L).
            span_bounds: tokens that the effective span of each head does not exceed.

        Returns:
            (B, M, C), and for the next block the keys and values of each group of heads, (B, T, h, 2, D).

        Raises:
            RuntimeError: if gradients are enabled.
        """
        context = KeysValues(past, hidden, self._weights(), self.num_heads, self.qk_norm)
        attended = self._attend(context, position_embedding, span_bounds)
        return self._project(attended.output), next_past(attended.keys_values, hidden.size(1))

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query.weight, self.key.weight, self.value.weight

    def _attend(self, context: Context, position_embedding: Tensor, span_bounds: Sequence[int]) -> Attended:
        spans = self.span.tokens() if self.span is not None else None  # (H,)
        return self.attend(
            context,
            position_embedding,
            SpanGeometry(spans, self.ramp, span_bounds),
            self.dropout if self.training else 0.0,
            self.memory() if self.memory is not None else None,
        )

    def _project(self, heads: Tensor) -> Tensor:
        """Return the output projection, (B, M, C), of the outputs of all heads, (B, M, H, D)."""
        return linear(self.output, heads.flatten(2))


def begin(last: nn.Linear, config: ModelConfig) -> nn.Linear:
    """Return the last matrix of a block, divided by the root of the number of blocks if their sum shall begin small.

    As GPT-2 begins (Language Models are Unsupervised Multitask Learners, section 2.3).
    """
    if config.init == "small_branches":
        with torch.no_grad():
            last.weight.mul_(len(config.block_order()) ** -0.5)
    return last


class AttentionBlock(nn.Module):
    """Compute h = Norm(h + Attention(h)), or pre-norm h = h + Attention(Norm(h)).

    Args:
        config: see `AdaptiveSpanAttention`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = AdaptiveSpanAttention(config)
        self.norm, self.is_pre = norm(config), config.norm == "pre"

    def forward(self, hidden: Hidden, states: Tensor, position_embedding: Tensor, span_bounds: Sequence[int]) -> Hidden:
        """Return the block's output, (B, M, C). See `AdaptiveSpanAttention.forward`."""
        attended = self.attention(hidden.operand, states, position_embedding, span_bounds)
        return add_and_norm(hidden.exact, attended, self.norm, self.is_pre)

    def infer(
        self, hidden: Hidden, past: list[Tensor], position_embedding: Tensor, span_bounds: Sequence[int]
    ) -> tuple[Hidden, list[Tensor]]:
        """Return the block's output, (B, M, C), and the next past. See `AdaptiveSpanAttention.infer`."""
        attended, keys_values = self.attention.infer(hidden.operand, past, position_embedding, span_bounds)
        return add_and_norm(hidden.exact, attended, self.norm, self.is_pre), keys_values


class FeedForwardBlock(nn.Module):
    """Compute h = Norm(h + W₂ dropout(ReLU(W₁ h + b₁)) + b₂), pre-norm and with other activations if wanted.

    Args:
        config: sizes, dropout, activation and norm.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.ffn_size)
        self.contract = begin(nn.Linear(config.ffn_size, config.hidden_size), config)
        self.activation = config.activation
        self.gate = nn.Linear(config.hidden_size, config.ffn_size) if config.activation == "swiglu" else None
        self.dropout = nn.Dropout(config.dropout if config.ffn_dropout is None else config.ffn_dropout)
        self.norm, self.is_pre = norm(config), config.norm == "pre"

    def forward(self, hidden: Hidden) -> Hidden:
        """Return the block's output, (B, M, C)."""
        return feed_forward(hidden, self.parts(), self.norm, self.is_pre)

    def parts(self) -> FeedForward:
        """Return what the feed-forward consists of."""
        dropout = self.dropout.p if self.training else 0.0
        return FeedForward(self.expand, self.contract, self.gate, self.activation, dropout)
