"""Predict a text token by token, at the cost of what each head sees.

Keys and values lie in rings, of a head or of a group of heads: a new token takes the place of the oldest one, and
nothing is moved.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_span.attention import decoding
from adaptive_span.attention.context import unit_queries, with_unit_keys
from adaptive_span.attention.decoding import DecodedLayer, HeadRings
from adaptive_span.attention.group_rings import GroupRings
from adaptive_span.config.registry import is_exchangeable
from adaptive_span.errors import UserError
from adaptive_span.hardware.step_graph import StepGraph
from adaptive_span.model.blocks import AttentionBlock, FeedForwardBlock
from adaptive_span.model.elementwise import ACTIVATIONS, Hidden, normalized, with_operand
from adaptive_span.model.transformer import Transformer

Spans = Sequence[Sequence[float]]  # effective, in tokens, (N, H)


class Decoder:
    """Read texts and predict how they go on, one token of each at a time.

    While it is used, the model's weights must not change.

    Args:
        model: What predicts.
        batch_size: B, the texts that are read side by side.
        spans: Tokens that each head is given, (N, H); where not given, as many as it has learned to see. More of them
            change nothing but the cost, which a benchmark compares.
        graphs: Whether to record a step as a CUDA graph.
        dtype: Type of keys, values, and the blocks' weights in products; where not given, the model's own. The prompt,
            residuals, norms and the output layer are computed as precisely as the model is.

    Raises:
        UserError: The model's attention is not the project's own.
    """

    def __init__(
        self,
        model: Transformer,
        batch_size: int,
        spans: Spans | None = None,
        graphs: bool = False,
        dtype: torch.dtype | None = None,
    ):
        if not is_exchangeable(model.config.attention):
            raise UserError(
                f"model.attention={model.config.attention} is not known to compute what the project's own does, which "
                f"predicts token by token; register it with exchangeable=True if it does"
            )
        self.model, device = model.eval(), model.position_embedding.device
        self.graph = StepGraph() if graphs else None
        dtype = dtype or model.position_embedding.dtype
        with torch.inference_mode():
            self.present = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)  # where a graph looks for it
            self.layers = [
                LayerDecoder(block, model.position_embedding.to(dtype), heads, batch_size)
                for block, heads in zip(model.attention_blocks, spans or model.spans().tolist(), strict=True)
            ]
            self.feed_forwards = [FeedForwardDecoder(block, dtype) for block in model.feed_forward_blocks]

    @torch.inference_mode()
    def read_prompt(self, tokens: Tensor) -> Tensor:
        """Read the beginning of the texts, block by block.

        Args:
            tokens: Ids, (B, M), M ≥ 1. What lies further back than all spans has no effect but through them.

        Returns:
            log p of every token that may follow, (B, V).
        """
        cache, bounds = self.model.empty_cache(len(tokens)), self.model.span_bounds()
        for block in tokens.split(self.model.config.block_size, dim=1):
            hidden, cache = self.model.hidden_states(block, cache, bounds)
        for layer, states in zip(self.layers, cache.layers, strict=True):
            layer.fill(states)
        return self.model.output.log_probabilities(hidden[:, -1:])[:, 0]

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> Tensor:
        """Read one more token of each text.

        Args:
            tokens: Ids, (B,).

        Returns:
            log p of every token that may follow, (B, V). The next call may overwrite it.
        """
        self.present.copy_(tokens[:, None])
        return self._step() if self.graph is None else self.graph.run(self.present.shape, self._step, self._step)

    def _step(self) -> Tensor:
        model, attention = self.model, iter(self.layers)
        feed_forward = iter(self.feed_forwards)
        vectors: Tensor = model.embedding(self.present)[:, 0]  # (B, C)
        hidden = (
            with_operand(vectors) if model.first_norm is None else normalized(vectors, model.first_norm, is_pre=True)
        )
        for kind in model.order:
            hidden = next(attention).run(hidden) if kind == "a" else next(feed_forward).run(hidden)
        return model.output.log_probabilities(hidden.operand[:, None])[:, 0]

    @property
    def cache_bytes(self) -> int:
        """Return what all keys and values take."""
        return sum(layer.rings.nbytes for layer in self.layers)


class LayerDecoder:
    """Attend from one token of each text to those that the heads of a layer still see."""

    def __init__(self, block: nn.Module, position_embedding: Tensor, spans: Sequence[float], rows: int):
        assert isinstance(block, AttentionBlock)
        attention, self.norm, self.is_pre = block.attention, block.norm, block.is_pre
        size, self.heads = position_embedding.size(0), attention.num_heads
        bounds = [min(attention.max_span, max(1, math.ceil(span))) for span in spans]
        learned = attention.span.tokens() if attention.span is not None else None
        self.qk_norm, self.dtype = attention.qk_norm, position_embedding.dtype
        dtype = self.dtype
        memory = None if attention.memory is None else tuple(each.to(dtype) for each in attention.memory())
        compiled = decoding.runs_on(position_embedding.device, dtype)
        kind = HeadRings if compiled else GroupRings
        self.rings = kind(DecodedLayer(bounds, position_embedding, learned, attention.ramp, memory, rows))
        weights = [attention.query.weight * size**-0.5, attention.key.weight, attention.value.weight]
        order = self.rings.order
        self.weight = torch.stack(weights).unflatten(1, (-1, size))[:, order].flatten(0, 2).to(dtype).t()  # (C, 3·H·D)
        self.output = attention.output.weight.unflatten(1, (-1, size))[:, order].flatten(1).to(dtype).t()  # (H·D, C)

    def fill(self, states: Tensor) -> None:
        """Take the hidden states of the last tokens, (B, T, C), oldest first; zeros stand for those before."""
        keys_values = states.to(self.dtype) @ self.weight[:, self.weight.size(1) // 3 :]
        keys_values = keys_values.unflatten(2, (2, self.heads, -1))  # (B, T, 2, H, D)
        if self.qk_norm:
            keys_values = with_unit_keys(keys_values.transpose(2, 3)).transpose(2, 3)
        self.rings.fill(keys_values)

    def run(self, hidden: Hidden) -> Hidden:
        """Return the output of the block, (B, C), from the present hidden states (B, C), and keep their keys."""
        projected = torch.mm(hidden.operand.to(self.dtype), self.weight)
        if self.qk_norm:
            query, *keys_values = projected.unflatten(1, (3, self.heads, -1)).unbind(1)  # (B, H, D) each
            joined = with_unit_keys(torch.stack(keys_values, dim=2)).unbind(2)
            projected = torch.stack([unit_queries(query), *joined], dim=1).flatten(1)
        attended: Tensor = self.rings.attend(projected)
        return normalized(_add_product(hidden.exact, attended, self.output), self.norm, self.is_pre)


class FeedForwardDecoder:
    """Run a feed-forward block on one token of each text."""

    def __init__(self, block: nn.Module, dtype: torch.dtype):
        assert isinstance(block, FeedForwardBlock)
        self.expand, self.contract = (layer.weight.to(dtype).t() for layer in (block.expand, block.contract))
        self.inner_bias, self.bias = block.expand.bias.to(dtype), block.contract.bias
        gate = block.gate
        self.gate = None if gate is None else (gate.bias.to(dtype), gate.weight.to(dtype).t())
        self.activation = torch.relu_ if block.activation == "relu" else ACTIVATIONS.get(block.activation)
        self.norm, self.is_pre, self.dtype = block.norm, block.is_pre, dtype

    def run(self, hidden: Hidden) -> Hidden:
        """Return the output of the block, (B, C), from hidden states (B, C)."""
        states = hidden.operand.to(self.dtype)
        inner = torch.addmm(self.inner_bias, states, self.expand)
        if self.gate is not None:
            bias, weight = self.gate
            inner *= F.silu(torch.addmm(bias, states, weight))
        elif self.activation is not None:
            inner = self.activation(inner)
        return normalized(_add_product(hidden.exact, inner, self.contract) + self.bias, self.norm, self.is_pre)


def _add_product(hidden: Tensor, inner: Tensor, weight: Tensor) -> Tensor:
    """Return hidden + inner · weight, in one call where all are of one type: calls take time beside small layers."""
    if inner.dtype == hidden.dtype:
        return torch.addmm(hidden, inner, weight)
    return hidden + torch.mm(inner, weight)
