"""Predict a text token by token, at the cost of what each head sees.

A group of heads keeps its keys and values in a ring as long as its longest span: a new token takes the place of the
oldest one, and nothing is moved. Scores that go by distance are brought into the order of the ring, which is cheap.

Besides the letters of `adaptive_span.attention`: t, the tokens read so far; slot t mod S of a ring holds the oldest.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_span.attention.head_groups import HeadGroup, group_heads, order_of
from adaptive_span.attention.span import log_soft_mask
from adaptive_span.config.registry import is_exchangeable
from adaptive_span.errors import UserError
from adaptive_span.hardware.step_graph import StepGraph
from adaptive_span.model.blocks import AttentionBlock, FeedForwardBlock
from adaptive_span.model.transformer import Transformer

Spans = Sequence[Sequence[float]]  # effective, in tokens, (N, H)


class Place(NamedTuple):
    """Say which token is where in a ring of S slots."""

    order: Tensor  # (S,): what each slot holds, counted from the oldest token
    oldest: Tensor  # (1,): the slot of the oldest one


class Decoder:
    """Read texts and predict how they go on, one token of each at a time.

    While it is used, the model's weights must not change.

    Args:
        model: What predicts.
        batch_size: B, the texts that are read side by side.
        spans: Tokens that each head is given, (N, H); where not given, as many as it has learned to see. More of them
            change nothing but the cost, which a benchmark compares.
        graphs: Whether to record a step as a CUDA graph.

    Raises:
        UserError: The model's attention is not the project's own.
    """

    def __init__(self, model: Transformer, batch_size: int, spans: Spans | None = None, graphs: bool = False):
        if not is_exchangeable(model.config.attention):
            raise UserError(
                f"model.attention={model.config.attention} is not known to compute what the project's own does, which "
                f"predicts token by token; register it with exchangeable=True if it does"
            )
        self.model, device = model.eval(), model.position_embedding.device
        self.graph = StepGraph() if graphs else None
        with torch.inference_mode():
            self.read_tokens = torch.zeros(1, dtype=torch.int64, device=device)  # t
            self.present = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)  # where a graph looks for it
            self.layers = [
                LayerDecoder(block, model.position_embedding, heads, batch_size)
                for block, heads in zip(model.attention_blocks, spans or model.spans().tolist(), strict=True)
            ]

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
        self.read_tokens.zero_()  # the rings begin with their oldest token
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
        model, attention, places = self.model, iter(self.layers), self.places()
        feed_forward = iter(model.feed_forward_blocks)
        hidden: Tensor = model.embedding(self.present)[:, 0]  # (B, C)
        for kind in model.order:
            hidden = next(attention).run(hidden, places) if kind == "a" else _feed_forward(next(feed_forward), hidden)
        self.read_tokens += 1
        return model.output.log_probabilities(hidden[:, None])[:, 0]

    def places(self) -> dict[int, Place]:
        """Return for each length of a ring where its tokens are."""
        lengths = {ring.span for layer in self.layers for ring in layer.rings}
        slots = torch.arange(max(lengths), device=self.read_tokens.device)
        return {
            span: Place((slots[:span] - self.read_tokens).remainder(span), self.read_tokens.remainder(span))
            for span in lengths
        }

    @property
    def cache_bytes(self) -> int:
        """Return what all keys and values take."""
        return sum(ring.keys_values.nbytes for layer in self.layers for ring in layer.rings)


class LayerDecoder:
    """Attend from one token of each text to those that the heads of a layer still see."""

    def __init__(self, block: nn.Module, position_embedding: Tensor, spans: Sequence[float], rows: int):
        assert isinstance(block, AttentionBlock)
        attention, self.norm = block.attention, block.norm
        size, heads = position_embedding.size(0), attention.num_heads
        bounds = [min(attention.max_span, max(1, math.ceil(span))) for span in spans]
        groups = group_heads(bounds)
        weights = [attention.query.weight * size**-0.5, attention.key.weight, attention.value.weight]
        by_head = torch.stack(weights).unflatten(1, (heads, size))  # (3, H, D, C)
        self.weight = torch.cat([by_head[:, list(group.heads)].flatten(0, 2) for group in groups])  # (3·H·D, C)
        self.sizes = [3 * len(group.heads) * size for group in groups]  # rows of each group: queries, keys, values
        order = list(order_of(groups))
        self.output = attention.output.weight.unflatten(1, (heads, size))[:, order].flatten(1)  # (C, H·D)
        masks = attention.span.tokens() if attention.span is not None else None
        memory = None if attention.memory is None else attention.memory()
        self.rings = [Ring(group, position_embedding, masks, attention.ramp, memory, rows) for group in groups]
        self.size = size

    def fill(self, states: Tensor) -> None:
        """Take the hidden states of the last tokens, (B, T, C), oldest first; zeros stand for those before."""
        for ring, weight in zip(self.rings, self.weight.split(self.sizes), strict=True):
            projected = F.linear(states[:, -ring.span :], weight[len(weight) // 3 :])  # (B, T, 2·h·D)
            ring.fill(projected.unflatten(2, (2, -1, self.size)).permute(2, 0, 3, 1, 4))

    def run(self, hidden: Tensor, places: dict[int, Place]) -> Tensor:
        """Return the output of the block, (B, C), from the present hidden states (B, C), and keep their keys."""
        outputs = []
        for ring, part in zip(self.rings, F.linear(hidden, self.weight).split(self.sizes, 1), strict=True):
            query, key, value = part.view(len(hidden), 3, -1, self.size).unbind(1)  # (B, h, D) each
            outputs.append(ring.attend(query, key, value, places[ring.span]))
        attended: Tensor = self.norm(hidden + F.linear(torch.cat(outputs, 1), self.output))
        return attended


class Ring:
    """Hold the last keys and values of a group of heads, for n = B·h matrices."""

    def __init__(
        self,
        group: HeadGroup,
        position_embedding: Tensor,  # (D, L)
        masks: Tensor | None,  # z of each head of the layer, in tokens, (H,)
        ramp: int,
        memory: tuple[Tensor, Tensor] | None,  # persistent keys (H, D, N) and values (H, N, D)
        rows: int,
    ):
        self.span, heads = group.span, list(group.heads)
        count, size = rows * len(heads), position_embedding.size(0)
        self.keys_values = position_embedding.new_zeros(2, count, self.span, size)  # (2, n, S, D)
        self.position_embedding = position_embedding[:, -self.span :].contiguous()  # (D, S), oldest first
        log_mask = position_embedding.new_zeros(1, self.span)
        if masks is not None:
            log_mask = log_soft_mask(masks[heads], ramp, self.span).repeat(rows, 1)
        self.log_mask = log_mask  # (n, S) or (1, S), oldest first
        self.memory = None if memory is None else tuple(each[heads].repeat(rows, 1, 1) for each in memory)

    def fill(self, keys_values: Tensor) -> None:
        """Take the keys and values of the last tokens, (2, B, h, T, D) with T ≤ S, oldest first."""
        self.keys_values.zero_()
        self.keys_values[:, :, self.span - keys_values.size(3) :] = keys_values.flatten(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, place: Place) -> Tensor:
        """Attend to all that the ring holds, then put the present token in the place of the oldest one.

        Args:
            query: Of the present token, (B, h, D), times 1 / √D.
            key: Likewise, (B, h, D), which the query does not see.
            value: Likewise.
            place: Where the ring's tokens are.

        Returns:
            (B, h·D).
        """
        rows, queries = len(query), query.reshape(-1, query.size(2))  # (n, D)
        by_distance = torch.addmm(self.log_mask, queries, self.position_embedding)  # (n, S)
        by_slot = by_distance.index_select(1, place.order)[:, None]  # (n, 1, S)
        keys, values = self.keys_values.unbind()
        scores = torch.baddbmm(by_slot, queries[:, None], keys.transpose(1, 2))  # (n, 1, S)
        if self.memory is None:
            output = torch.bmm(scores.softmax(2), values)  # (n, 1, D)
        else:
            memory_keys, memory_values = self.memory
            weights = torch.cat([scores, torch.bmm(queries[:, None], memory_keys)], 2).softmax(2)  # (n, 1, S + N)
            output = torch.bmm(weights[:, :, : self.span], values)
            output = torch.baddbmm(output, weights[:, :, self.span :], memory_values)
        present = torch.stack([key, value]).view(2, -1, 1, query.size(2))  # (2, n, 1, D)
        self.keys_values.index_copy_(2, place.oldest, present)
        return output.view(rows, -1)


def _feed_forward(block: nn.Module, hidden: Tensor) -> Tensor:
    """Return the output of the block, (B, C), from hidden states (B, C)."""
    assert isinstance(block, FeedForwardBlock)
    output: Tensor = block.norm(hidden + block.contract(F.relu(block.expand(hidden))))
    return output
