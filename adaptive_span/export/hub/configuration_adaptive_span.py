"""The sizes of a Transformer whose attention heads each look as far as they have learned (arXiv 1905.07799)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import PretrainedConfig


class AdaptiveSpanConfig(PretrainedConfig):
    """Describe the model.

    Args:
        vocab_size: V, the tokens that the model knows.
        num_layers: Attention layers.
        hidden_size: C, the size of the hidden states.
        ffn_size: Inner size of the feed-forward; 0 where there is none.
        num_heads: H, the heads of a layer, each with a span of its own.
        max_span: L, the tokens that a head looks back at most.
        adaptive_span: Whether heads have learned their spans; else each looks back L tokens.
        ramp: R, the tokens over which a head's soft mask falls from 1 to 0.
        memory_size: Persistent keys and values of each head (arXiv 1907.01470).
        layer_order: A letter for each block from the input on: a for attention, f for feed-forward; None: they
            alternate.
        dropout: Of the attention weights, and inside the feed-forward.
        attention_dropout: Of the attention weights; None: as `dropout`.
        ffn_dropout: Inside the feed-forward; None: as `dropout`.
        embedding_dropout: After the embedding and before the output layer.
        cutoffs: Token ids at which a new cluster of rarer words begins (arXiv 1809.10853); empty: one table for all.
        division: How many times smaller the vectors of a cluster are than those of the one before.
        tied: Whether the clusters of the input and of the output share their vectors.
        tied_output: Whether the output layer of a vocabulary without cutoffs shares the vectors of the input.
        norm: `post`: a block ends in the norm of its sum; `pre`: a block reads the norm of its input (arXiv
            2002.04745).
        norm_kind: `layer` or `rms` (arXiv 1910.07467).
        activation: Inside the feed-forward: `relu`, `gelu`, `relu2` (arXiv 2109.08668) or `swiglu` (arXiv 2002.05202).
        qk_norm: Whether queries and keys are scaled to one length (arXiv 2010.04245).
        use_cache: Whether the model returns the keys and values that its heads still see.
        others: What every configuration of transformers has.
    """

    model_type = "adaptive_span"
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]

    def __init__(
        self,
        vocab_size: int = 256,
        num_layers: int = 12,
        hidden_size: int = 512,
        ffn_size: int = 2048,
        num_heads: int = 8,
        max_span: int = 8192,
        adaptive_span: bool = True,
        ramp: int = 32,
        memory_size: int = 0,
        layer_order: str | None = None,
        dropout: float = 0.0,
        attention_dropout: float | None = None,
        ffn_dropout: float | None = None,
        embedding_dropout: float = 0.0,
        cutoffs: Sequence[int] = (),
        division: int = 4,
        tied: bool = True,
        tied_output: bool = False,
        norm: str = "post",
        norm_kind: str = "layer",
        activation: str = "relu",
        qk_norm: bool = False,
        use_cache: bool = True,
        **others: Any,
    ):
        self.vocab_size = vocab_size
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.ffn_size = ffn_size
        self.num_heads = num_heads
        self.max_span = max_span
        self.adaptive_span = adaptive_span
        self.ramp = ramp
        self.memory_size = memory_size
        self.layer_order = layer_order
        self.dropout = dropout
        self.attention_dropout = dropout if attention_dropout is None else attention_dropout
        self.ffn_dropout = dropout if ffn_dropout is None else ffn_dropout
        self.embedding_dropout = embedding_dropout
        self.cutoffs = list(cutoffs)
        self.division = division
        self.tied = tied
        self.tied_output = tied_output
        self.norm = norm
        self.norm_kind = norm_kind
        self.activation = activation
        self.qk_norm = qk_norm
        self.use_cache = use_cache
        # transformers would tie tables of one shape. Where vectors are shared here, there is but one of them.
        super().__init__(**{"tie_word_embeddings": False} | others)

    @property
    def block_order(self) -> str:
        """Return a letter for each block from the input on: a for attention, f for feed-forward."""
        return self.layer_order or ("af" if self.ffn_size else "a") * self.num_layers
