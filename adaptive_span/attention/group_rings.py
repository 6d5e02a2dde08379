"""Attention from one token of each text, in PyTorch: heads of similar span share a ring."""

import torch
from torch import Tensor

from adaptive_span.attention import HeadGroup
from adaptive_span.attention.decoding import DecodedLayer
from adaptive_span.attention.head_groups import group_heads, order_of


class GroupRings:
    """Hold the last keys and values of a layer, in a ring for each group of heads."""

    def __init__(self, layer: DecodedLayer):
        groups = group_heads(layer.bounds)
        self.order = list(order_of(groups))  # of the heads, in all that is handed in and out
        self.sizes = [len(group.heads) for group in groups]
        self.rings = [Ring(group, layer) for group in groups]

    @property
    def nbytes(self) -> int:
        """Return what keys and values take."""
        return sum(ring.keys_values.nbytes for ring in self.rings)

    def fill(self, keys_values: Tensor) -> None:
        """Take the keys and values of the last tokens, (B, T, 2, H, D), oldest first; zeros stand for those before."""
        for ring, part in zip(self.rings, keys_values.split(self.sizes, 3), strict=True):
            ring.fill(part)

    def attend(self, projected: Tensor) -> Tensor:
        """Attend to all that the rings hold, then put the present tokens in the place of the oldest ones.

        Args:
            projected: of the present tokens queries, times 1 / √D, keys and values, (B, 3·H·D).

        Returns:
            (B, H·D).
        """
        parts = projected.unflatten(1, (3, len(self.order), -1)).split(self.sizes, 2)  # (B, 3, h, D)
        return torch.cat([ring.attend(part) for ring, part in zip(self.rings, parts, strict=True)], 1)


class Ring:
    """Hold the last keys and values of a group of heads, for n = B·h matrices."""

    def __init__(self, group: HeadGroup, layer: DecodedLayer):
        self.span, heads = group.span, list(group.heads)
        position_embedding, rows, memory = layer.position_embedding, layer.rows, layer.memory
        count, size = rows * len(heads), position_embedding.size(0)
        self.keys_values = position_embedding.new_zeros(2, count, self.span, size)  # (2, n, S, D)
        self.position_embedding = position_embedding[:, -self.span :].contiguous()  # (D, S), oldest first
        masks = layer.log_masks(heads, self.span)  # (h, S), oldest first, as are those of all n
        self.log_mask = position_embedding.new_zeros(1, self.span) if masks is None else masks.repeat(rows, 1)
        self.memory = None if memory is None else tuple(each[heads].repeat(rows, 1, 1) for each in memory)
        self.age = torch.arange(self.span, device=position_embedding.device)  # of what each slot holds; 0: the oldest
        self.oldest = torch.zeros(1, dtype=torch.int64, device=position_embedding.device)  # its slot

    def fill(self, keys_values: Tensor) -> None:
        """Take the keys and values of the last tokens, (B, T, 2, h, D), oldest first."""
        known = keys_values[:, -self.span :].permute(2, 0, 3, 1, 4).flatten(1, 2)  # (2, n, T, D)
        self.keys_values.zero_()
        self.keys_values[:, :, self.span - known.size(2) :] = known
        self.oldest.zero_()
        torch.arange(self.span, out=self.age)

    def attend(self, projected: Tensor) -> Tensor:
        """Return the output (B, h·D) of the present tokens' queries, keys and values, (B, 3, h, D)."""
        query, key, value = projected.transpose(0, 1).reshape(3, -1, 1, projected.size(3))  # (n, 1, D) each
        by_distance = torch.addmm(self.log_mask, query[:, 0], self.position_embedding)  # (n, S)
        by_slot = by_distance.index_select(1, self.age)[:, None]  # (n, 1, S)
        keys, values = self.keys_values.unbind()
        scores = torch.baddbmm(by_slot, query, keys.transpose(1, 2))  # (n, 1, S)
        if self.memory is None:
            output = torch.bmm(scores.softmax(2), values)  # (n, 1, D)
        else:
            memory_keys, memory_values = self.memory
            weights = torch.cat([scores, torch.bmm(query, memory_keys)], 2).softmax(2)  # (n, 1, S + N)
            output = torch.bmm(weights[:, :, : self.span], values)
            output = torch.baddbmm(output, weights[:, :, self.span :], memory_values)
        self.keys_values.index_copy_(2, self.oldest, torch.stack([key, value]))
        self.age.sub_(1).remainder_(self.span)
        self.oldest.add_(1).remainder_(self.span)
        return output.view(len(projected), -1)
