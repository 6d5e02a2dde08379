"""A cache for `generate()` that keeps of each key/value head the tokens that its longest query head still sees.

The modeling file gives keys to the cache, and what the cache returns to attention. A layer of this cache returns the
new keys alone, and hands itself over with them: `HELD` is the attribute by which attention finds it.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from adaptive_span.errors import UserError
from adaptive_span.hf import attention
from adaptive_span.hf.learned import HeadSpans
from adaptive_span.hf.rings import Ring


class SpanCache(Cache):
    """Keep of every key/value head what its longest query head sees, and the sinks.

    Give a new one to `model.generate(..., past_key_values=SpanCache(model))`. The text is that of the whole cache. A
    sliding layer of the model itself keeps its window. Texts of a batch have the same length, without padding.

    Args:
        model: a model whose heads have spans, as `adaptive_span.hf.apply` returns it. Spans must not change while the
            cache is in use.

    Raises:
        UserError: the model's heads have no spans.
    """

    def __init__(self, model: PreTrainedModel):
        layers = DynamicCache(config=model.config).layers
        spans = {}
        for module in model.modules():
            if (each := getattr(module, attention.SPANS, None)) is not None:
                spans[int(module.layer_idx)] = each  # type: ignore[arg-type]
        if not spans:
            raise UserError(f"the heads of this {type(model).__name__} have no spans; call apply(model, spans) first")
        for index, each in spans.items():
            layers[index] = SpanLayer(each, type(model).__name__)
        super().__init__(layers=layers)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all that is held in memory: keys, values, and the masks by which they are weighed."""
        tensors: list[Tensor | None] = []
        layers: list[Any] = self.layers
        for layer in layers:
            tensors += layer.held() if isinstance(layer, SpanLayer) else [layer.keys, layer.values]
        storages = {tensor.untyped_storage() for tensor in tensors if tensor is not None}
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class SpanLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keep of one layer what its heads see: heads that need the same number of tokens in one `Ring`."""

    is_sliding = False

    def __init__(self, spans: HeadSpans, model: str):
        super().__init__()  # type: ignore[no-untyped-call]
        self.spans, self.model = spans, model
        self.rings: list[Ring] = []
        self.given = 0  # tokens whose keys went to attention

    def lazy_initialization(self, key_states: Tensor, *others: Tensor) -> None:
        """Make the rings, once the number of key/value heads is known."""
        longest, kv_heads = self.spans.span.max_span, key_states.size(1)
        bounds = torch.tensor(self.spans.bounds(longest)).unflatten(0, (kv_heads, -1)).amax(1).tolist()  # (G,)
        for bound in sorted(set(bounds)):
            heads = [head for head in range(kv_heads) if bounds[head] == bound]
            self.rings.append(Ring(self.spans, kv_heads, heads, None if bound >= longest else bound + 1))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Return the new keys and values, with which attention finds this layer."""
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        if self.given != self.get_seq_length():
            raise UserError(
                f"{self.model} does not give its attention the keys that the cache returns, or its attention is not "
                f"adaptive_span; generate without SpanCache, or apply the spans again"
            )
        self.given += key_states.size(2)
        key_states = key_states.view_as(key_states)  # an attribute of its own
        setattr(key_states, attention.HELD, self)
        return key_states, value_states

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scale: float,
        softcap: float | None,
    ) -> Tensor | None:
        """Keep new tokens, and attend from them to all that is held.

        Args:
            query: (B, H, M, D).
            key: (B, G, M, D).
            value: (B, G, M, D).
            attention_mask: as `attention.attend` gets it.
            scale: what queries are multiplied by.
            softcap: c of the scores c · tanh(s / c), or None.

        Returns:
            (B, H, M, D); None at the beginning of a text, where the caller has all keys.

        Raises:
            UserError: the texts are padded.
        """
        if attention_mask is not None:
            last = attention_mask[:, :, -1]
            if not bool((last if last.dtype == torch.bool else last == 0).all()):
                raise UserError(
                    "SpanCache takes texts of one length, and this batch is padded; generate texts of one length "
                    "together, or one at a time"
                )
        if not self.get_seq_length():
            for ring in self.rings:
                ring.store(key, value)
            return None
        queries = query.unflatten(1, (key.size(1), -1))  # (B, G, H / G, M, D)
        if len(self.rings) == 1:
            whole: Tensor = self.rings[0].attend(queries, key, value, scale, softcap).flatten(1, 2)
            return whole
        output = queries.new_empty(*queries.shape[:-1], value.size(3))
        for ring in self.rings:
            output[:, ring.heads] = ring.attend(queries, key, value, scale, softcap)
        joined: Tensor = output.flatten(1, 2)
        return joined

    def held(self) -> list[Tensor]:
        """Return the tensors that are held."""
        return [tensor for ring in self.rings for tensor in ring.held()]

    def get_seq_length(self, *others: Any) -> int:
        """Return the tokens of the text so far."""
        return self.rings[0].length if self.rings else 0

    def get_mask_sizes(self, query: Tensor | int) -> tuple[int, int]:
        """Return for how many keys a mask is made, and from which position on: for all, as padding would show there."""
        return self.get_seq_length() + (query if isinstance(query, int) else query.size(0)), 0

    def get_max_length(self) -> int:
        """Return −1: there is no maximum."""
        return -1

    get_max_cache_shape = get_max_length  # as transformers 4 calls it

    def reset(self) -> None:
        """Forget the text."""
        self.rings, self.given, self.is_initialized = [], 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows of a batch that go on, (B,)."""
        for ring in self.rings:
            if ring.keys is not None and ring.values is not None:
                ring.keys = ring.keys.index_select(0, beam_idx.to(ring.keys.device))
                ring.values = ring.values.index_select(0, beam_idx.to(ring.values.device))

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row so many times."""
        for ring in self.rings:
            if ring.keys is not None and ring.values is not None:
                ring.keys = ring.keys.repeat_interleave(repeats, 0)
                ring.values = ring.values.repeat_interleave(repeats, 0)

    def crop(self, tokens: int) -> None:
        """Raise `UserError`: tokens before the cropped ones may be gone."""
        raise UserError("SpanCache cannot take tokens back, as assisted generation does; generate without an assistant")
