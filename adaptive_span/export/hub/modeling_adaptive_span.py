"""A Transformer whose attention heads each look as far as they have learned (arXiv 1905.07799), and cost no more.

It may have persistent memory in place of its feed-forward (arXiv 1907.01470), and adaptive input and output for large
vocabularies (arXiv 1809.10853, 1609.04309). A query attends to the L positions before it, at distances d = 1 … L, and
never to itself:

    s(d) = (q · k(t−d) + q · p_d) / √D              score; p_d is one learned vector per distance
    m(d) = clamp((R + 1 + z − d) / R, 0, 1)         soft mask of a head's learned span z, with ramp R
    a(d) = m(d) exp s(d) / Σ m(d′) exp s(d′)        weight, computed as softmax(s + log m)
    y    = Σ a(d) v(t−d)                            output

Before the start of a text, and wherever `attention_mask` is 0, keys and values are zeros. Such positions still take a
weight by q · p_d: that is how the model was trained. Positions count by their distance alone, so a text that is padded
on the left has the very logits of the text without padding.

The letters of all shapes here:

    B  rows of the batch        C  hidden size, H · D       L  maximum span, tokens
    M  present tokens           D  head size                S  tokens that a group of heads looks back
    H  heads of a layer         N  persistent vectors       h  heads of a group
    V  vocabulary
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_adaptive_span import AdaptiveSpanConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "relu2": lambda x: F.relu(x).square(),
}
TILE = 256  # queries that attend at once: more of them would compute more scores outside the spans
# What transformers calls the cache: `cache` in newer versions, `past_key_values` in older ones.
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"

Groups = list[tuple[list[int], int]]  # heads that look about equally far, and how many tokens that is


class SpanCache:
    """Hold the keys and values that the heads still see, each group of heads as far back as it looks.

    Args:
        layers: For each layer and group keys and values, oldest first, (2, B, h, S, D).
        seen: Tokens that have been read.
    """

    def __init__(self, layers: list[list[Tensor]], seen: int):
        self.layers = layers
        self.seen = seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens have been read, also those that no head sees any more."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the rows with which beam search continues, (B,)."""
        self.layers = [[group.index_select(1, beam_idx) for group in layer] for layer in self.layers]


def group_heads(spans: Sequence[float], max_span: int) -> Groups:
    """Put heads together that look equally far, to a factor of two.

    Args:
        spans: Tokens that each head looks back, (H,).
        max_span: L.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    tokens = [min(max_span, math.floor(span) + 1) for span in spans]
    for head, count in enumerate(tokens):
        groups[(count - 1).bit_length()].append(head)
    return [(heads, max(tokens[head] for head in heads)) for heads in groups.values()]


def by_distance(scores: Tensor, span: int) -> Tensor:
    """Return scores by distance, oldest first, (B, h, M, S), of scores by position, (B, h, M, S + M − 1).

    Row m begins at column m: rows that are one longer begin one column further to the right each.
    """
    block = scores.size(2)
    rows: Tensor = F.pad(scores.flatten(2), (0, block)).unflatten(2, (block, -1))
    return rows[..., :span]


def by_position(weights: Tensor) -> Tensor:
    """Return weights by position, (B, h, M, S + M − 1), zeros elsewhere, of weights by distance, (B, h, M, S)."""
    block = weights.size(2)
    rows: Tensor = F.pad(weights, (0, block)).flatten(2)[..., :-block].unflatten(2, (block, -1))
    return rows


def unit(vectors: Tensor) -> Tensor:
    """Return vectors, (…, D), with a mean square of 1."""
    scale = (vectors.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return vectors * scale.to(vectors.dtype)


def norm_of(config: AdaptiveSpanConfig) -> nn.Module:
    """Return a norm of hidden states."""
    kind = nn.RMSNorm if config.norm_kind == "rms" else nn.LayerNorm
    return kind(config.hidden_size, eps=1e-5)


class Span(nn.Module):
    """Hold the learned spans z of a layer's heads, as fractions of L."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__()
        self.max_span, self.ramp = config.max_span, config.ramp
        self.fraction = nn.Parameter(torch.zeros(config.num_heads))

    def log_mask(self, heads: list[int], span: int) -> Tensor:
        """Return log m(d) of some heads at d = `span` … 1, (h, S)."""
        distance = torch.arange(span, 0, -1, device=self.fraction.device)
        height = (self.ramp + 1 + self.fraction[heads, None] * self.max_span - distance) / self.ramp
        # Where m has just reached 0, a weight below any rounding lets training feel what a longer span would bring.
        return torch.where(height >= 0, (height.clamp(0, 1) + 1e-20).log(), float("-inf"))


class Memory(nn.Module):
    """Hold keys and values that every query sees, stored at a variance of 1/D and 1/N and used at 1."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__()
        heads, size, count = config.num_heads, config.hidden_size // config.num_heads, config.memory_size
        self.key = nn.Parameter(torch.randn(heads, size, count) / math.sqrt(size))
        self.value = nn.Parameter(torch.randn(heads, count, size) / math.sqrt(count))

    def forward(self, heads: list[int]) -> tuple[Tensor, Tensor]:
        """Return keys, (h, D, N), and values, (h, N, D), of some heads."""
        size, count = self.key.shape[1:]
        return self.key[heads] * math.sqrt(size), self.value[heads] * math.sqrt(count)


class Attention(nn.Module):
    """Attend with several heads, each as far as its own learned span. No projection has biases."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.dropout, self.qk_norm = config.num_heads, config.attention_dropout, config.qk_norm
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)
        self.output = nn.Linear(size, size, bias=False)
        self.span = Span(config) if config.adaptive_span else None
        self.memory = Memory(config) if config.memory_size else None

    def forward(
        self, hidden: Tensor, known: Tensor | None, past: list[Tensor] | None, positions: Tensor, groups: Groups
    ) -> tuple[Tensor, list[Tensor]]:
        """Attend from the present tokens to those before them.

        Args:
            hidden: The present tokens, (B, M, C).
            known: 1 for each of them, or 0 where there is only padding, (B, M); None where all are tokens.
            past: Keys and values that the last call returned; None at the start of a text.
            positions: One learned vector per distance, oldest first, (D, L).
            groups: The heads.

        Returns:
            (B, M, C), and for the next call the last keys and values of each group, (2, B, h, S, D).
        """
        query, key, value = (
            layer(hidden).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # (B, H, M, D)
        if self.qk_norm:
            query, key = unit(query), unit(key)
        query, present = query * query.size(3) ** -0.5, torch.stack([key, value])
        if known is not None:
            present = present * known[:, None, :, None]
        outputs, next_past = [], []
        for index, (heads, span) in enumerate(groups):
            here = present[:, :, heads]  # (2, B, h, M, D)
            before = past[index] if past else here.new_zeros(*here.shape[:3], span, here.size(4))
            keys_values = torch.cat([before, here], dim=3)  # (2, B, h, S + M, D)
            outputs.append(self._attend(query[:, heads], keys_values, positions[:, -span:], heads))
            last = keys_values[..., -span:, :]
            next_past.append(last.clone() if hidden.size(1) > span else last)  # of a long block, only what is needed
        order = torch.tensor([head for heads, _ in groups for head in heads], device=hidden.device)
        joined = torch.cat(outputs, dim=1)[:, order.argsort()]  # (B, H, M, D)
        return self.output(joined.transpose(1, 2).flatten(2)), next_past

    def _attend(self, query: Tensor, keys_values: Tensor, positions: Tensor, heads: list[int]) -> Tensor:
        """Return the outputs of a group of heads, (B, h, M, D), a tile of queries after the other."""
        keys, values = keys_values
        span, dropout = positions.size(1), self.dropout if self.training else 0.0
        log_mask = self.span.log_mask(heads, span)[:, None].to(query.dtype) if self.span is not None else None
        memory = self.memory(heads) if self.memory is not None else None
        outputs = []
        for start in range(0, query.size(2), TILE):
            tile = query[:, :, start : start + TILE]  # (B, h, m, D)
            seen = slice(start, start + span + tile.size(2) - 1)
            scores = by_distance(tile @ keys[:, :, seen].transpose(2, 3), span) + tile @ positions  # (B, h, m, S)
            if log_mask is not None:
                scores = scores + log_mask
            if memory is not None:
                scores = torch.cat([scores, tile @ memory[0]], dim=3)  # (B, h, m, S + N)
            weights = F.dropout(scores.softmax(3), dropout, training=dropout > 0)
            output = by_position(weights[..., :span]) @ values[:, :, seen]
            outputs.append(output if memory is None else output + weights[..., span:] @ memory[1])
        return torch.cat(outputs, dim=2)


class Block(nn.Module):
    """End a block of either kind in a norm: of post-norm models its own, of pre-norm ones that of the next block."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__()
        self.norm, self.is_pre = norm_of(config), config.norm == "pre"

    def ended(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the next block adds to, and what it reads, (B, M, C) both, of the sum of this one."""
        normed = self.norm(total)
        return total if self.is_pre else normed, normed


class AttentionBlock(Block):
    """Compute h = Norm(h + Attention(h)), or pre-norm h = h + Attention(Norm(h))."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__(config)
        self.attention = Attention(config)

    def forward(
        self,
        hidden: tuple[Tensor, Tensor],
        known: Tensor | None,
        past: list[Tensor] | None,
        positions: Tensor,
        groups: Groups,
    ) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
        """Return the block's output, twice (B, M, C), and what the next call needs. See `Attention.forward`."""
        residual, read = hidden
        attended, next_past = self.attention(read, known, past, positions, groups)
        return self.ended(residual + attended), next_past


class FeedForwardBlock(Block):
    """Compute h = Norm(h + W₂ dropout(f(W₁ h + b₁)) + b₂), or pre-norm on the norm of h."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__(config)
        self.activation = config.activation
        self.gate = nn.Linear(config.hidden_size, config.ffn_size) if config.activation == "swiglu" else None
        self.expand = nn.Linear(config.hidden_size, config.ffn_size)
        self.contract = nn.Linear(config.ffn_size, config.hidden_size)
        self.dropout = nn.Dropout(config.ffn_dropout)

    def forward(self, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the block's output, twice (B, M, C)."""
        residual, read = hidden
        inner = self.expand(read)  # (B, M, F)
        inner = inner * F.silu(self.gate(read)) if self.gate is not None else ACTIVATIONS[self.activation](inner)
        return self.ended(residual + self.contract(self.dropout(inner)))


class TiedOutput(nn.Module):
    """Score tokens by the vectors of the input."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, shared: nn.Embedding) -> Tensor:
        """Return logits, (B, M, V), from hidden states, (B, M, C), and the input layer."""
        return F.linear(hidden, shared.weight, self.bias)


class AdaptiveEmbedding(nn.Module):
    """Embed words, numbered by falling frequency, with vectors that are smaller the rarer a cluster is."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__()
        self.bounds = [0, *config.cutoffs, config.vocab_size]
        sizes = [config.hidden_size // config.division**index for index in range(len(self.bounds) - 1)]
        self.vectors = nn.ParameterList(
            torch.randn(high - low, size) for (low, high), size in zip(pairwise(self.bounds), sizes, strict=True)
        )
        self.projections = nn.ParameterList(torch.randn(config.hidden_size, size) / size**0.5 for size in sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors of words, (B, M, C), of their ids, (B, M)."""
        total = torch.zeros((), device=tokens.device)
        clusters = zip(pairwise(self.bounds), self.vectors, self.projections, strict=True)
        for (low, high), vectors, projection in clusters:
            inside = (tokens >= low) & (tokens < high)
            vector = F.embedding(torch.where(inside, tokens - low, 0), vectors) * inside[..., None]
            total = total + F.linear(vector, projection)
        return total * math.sqrt(total.size(2))


class AdaptiveSoftmax(nn.Module):
    """Compute log p(word) = log p(cluster) + log p(word | cluster)."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__()
        self.embedding = None if config.tied else AdaptiveEmbedding(config)
        self.bounds = [0, *config.cutoffs, config.vocab_size]
        self.biases = nn.ParameterList(torch.zeros(high - low) for low, high in pairwise(self.bounds))
        self.clusters = nn.Linear(config.hidden_size, len(config.cutoffs))

    def forward(self, hidden: Tensor, shared: AdaptiveEmbedding) -> Tensor:
        """Return log p of every word, (B, M, V), from hidden states, (B, M, C), and the vectors of the input."""
        embedding = shared if self.embedding is None else self.embedding
        projected = [hidden @ projection for projection in embedding.projections]
        logits = [F.linear(*each) for each in zip(projected, embedding.vectors, self.biases, strict=True)]
        head = torch.cat([logits[0], self.clusters(projected[0])], dim=-1).log_softmax(-1)
        parts = [head[..., : self.bounds[1]]]
        for index, tail in enumerate(logits[1:], start=1):  # whose own logit in the head is the index-th from the end
            parts.append(head[..., head.size(-1) - index, None] + tail.log_softmax(-1))
        return torch.cat(parts, dim=-1)


class AdaptiveSpanForCausalLM(PreTrainedModel, GenerationMixin):
    """Predict each next token of a text."""

    config_class = AdaptiveSpanConfig
    main_input_name = "input_ids"
    accepts_loss_kwargs = False  # the loss is a mean over the tokens of this call
    _is_stateful = True  # the cache cannot go back to tokens that no head sees any more

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__(config)
        if config.adaptive_span:  # in 16 bits a long span would move by many tokens
            self._keep_in_fp32_modules_strict = ["span"]
        order = config.block_order
        self.embedding: nn.Module
        self.output: nn.Module
        if config.cutoffs:
            self.embedding, self.output = AdaptiveEmbedding(config), AdaptiveSoftmax(config)
        else:
            self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
            self.output = TiedOutput(config) if config.tied_output else nn.Linear(config.hidden_size, config.vocab_size)
        self.input_scale = config.hidden_size**0.5 if config.tied_output else 1.0  # of vectors as scores need them
        self.first_norm = norm_of(config) if config.norm == "pre" else None
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.positions = nn.Parameter(torch.randn(config.hidden_size // config.num_heads, config.max_span))
        self.attention_blocks = nn.ModuleList(AttentionBlock(config) for _ in range(order.count("a")))
        self.feed_forward_blocks = nn.ModuleList(FeedForwardBlock(config) for _ in range(order.count("f")))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave what the modules themselves begin with."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the input layer."""
        return self.embedding

    @torch.no_grad()
    def spans(self) -> Tensor:
        """Return how far each head looks, min(L, z + R) tokens, (layers, H)."""
        longest, ramp = self.config.max_span, self.config.ramp
        if not self.config.adaptive_span:
            return torch.full((self.config.num_layers, self.config.num_heads), float(longest))
        fractions = torch.stack([module.fraction.float() for module in self.modules() if isinstance(module, Span)])
        spans: Tensor = (fractions * longest + ramp).clamp(max=longest)
        return spans

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Score every token that may follow each of the given ones.

        Args:
            input_ids: The tokens, (B, M); with a cache those alone that it has not read.
            attention_mask: 1 for a token and 0 for padding, (B, M), or longer by what the cache has read.
            labels: The tokens again, (B, M), −100 where none is to be predicted. The loss is that of predicting each of
                them from those before it.
            use_cache: Whether to return a cache, which holds what the heads still see; None: as the configuration says.
            logits_to_keep: Score the last so many positions alone; 0: all.
            return_dict: Whether to return names with the values.
            kwargs: `past_key_values`, which newer versions of transformers call `cache`: what the last call returned.

        Returns:
            `logits`, (B, M, V), the cache, and with labels `loss`: the mean in nats per token.

        Raises:
            ValueError: The mask has another form, or something is asked for that this model does not have.
        """
        past, groups = kwargs.get("past_key_values", kwargs.get("cache")), self._groups()
        for name in ("inputs_embeds", "output_attentions", "output_hidden_states"):
            if kwargs.get(name) is not None and kwargs[name] is not False:
                raise ValueError(f"{name} is not known to this model; give input_ids")
        known = None
        if attention_mask is not None:
            if attention_mask.dim() != 2:
                raise ValueError(f"attention_mask {tuple(attention_mask.shape)} must be 0 or 1 for each token, (B, M)")
            known = attention_mask[:, -input_ids.size(1) :] != 0
            input_ids = input_ids * known  # whatever stands for padding, which may be no token of the vocabulary
        vectors = self.embedding_dropout(self.embedding(input_ids) * self.input_scale)
        hidden = vectors, vectors if self.first_norm is None else self.first_norm(vectors)
        layers = zip(self.attention_blocks, groups, past.layers if past else [None] * len(groups), strict=True)
        feed_forward, next_past = iter(self.feed_forward_blocks), []
        for kind in self.config.block_order:
            if kind == "f":
                hidden = next(feed_forward)(hidden)
            else:
                block, heads, before = next(layers)
                hidden, after = block(hidden, known, before, self.positions, heads)
                next_past.append(after)
        read = self.embedding_dropout(hidden[1])[:, -logits_to_keep:]
        is_shared = self.config.cutoffs or self.config.tied_output
        logits = self.output(read, self.embedding) if is_shared else self.output(read)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        seen = input_ids.size(1) + (past.seen if past else 0)
        kept: dict[str, Any] = {CACHE: SpanCache(next_past, seen) if use_cache else None}
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **kept)
        return output if return_dict else output.to_tuple()

    def _groups(self) -> list[Groups]:
        """Return the heads of each layer in groups: one transfer from the device."""
        return [group_heads(spans, self.config.max_span) for spans in self.spans().tolist()]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Say that `generate` shall leave the cache to `forward`."""
        return False

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Return what `generate` hands to `forward`: with a cache the tokens alone that it has not read."""
        past = kwargs.get(CACHE)
        inputs = {name: kwargs.get(name) for name in ("attention_mask", "use_cache", CACHE)}
        inputs["logits_to_keep"] = kwargs.get("logits_to_keep") or 1
        return inputs | {"input_ids": input_ids[:, past.seen :] if past else input_ids}
