"""Define the keys of `model`: the network."""

from dataclasses import dataclass, field
from math import isqrt
from typing import Annotated

from adaptive_span.config import layer_order
from adaptive_span.config.checks import OneOf, Range, check
from adaptive_span.config.kinds import Count, Probability, Size, SizeOrNone
from adaptive_span.config.registry import ATTENTIONS
from adaptive_span.errors import UserError, either

ACTIVATIONS = ("relu", "gelu", "relu2", "swiglu")
INITS = ("published", "small_branches")
NORMS = ("post", "pre")
NORM_KINDS = ("layer", "rms")


@dataclass
class ModelConfig:
    """Sizes of the Transformer.

    Source: arXiv 1905.07799 (N, C, F, H, L, M, R there are `num_layers`, `hidden_size`, `ffn_size`, `num_heads`,
    `max_span`, `block_size`, `ramp`); arXiv 1907.01470 for `memory_size`; arXiv 1809.10853 for `cutoffs`; and for what
    is not theirs: arXiv 2002.04745 for `norm=pre`, 1910.07467 for `norm_kind=rms`, 2109.08668 for `relu2`, 2002.05202
    for `swiglu`, 2010.04245 for `qk_norm`, 1608.05859 for `tied_output`.
    """

    name: str
    """Name of the model. It stands in the name of the run's directory."""
    num_layers: Annotated[int, Range(1, 10_000)]
    """Number of layers. Each has attention, followed by a feed-forward unless `model.layer_order` moves it."""
    hidden_size: Size
    """Size of the hidden states. A multiple of `model.num_heads`."""
    ffn_size: SizeOrNone
    """Inner size of the feed-forward. 0: no feed-forward, attention alone."""
    num_heads: Size
    """Heads per layer. Each has a span of its own."""
    max_span: Size
    """Longest span of a head, in tokens."""
    block_size: Size
    """Tokens of each row that one step predicts."""
    adaptive_span: bool = True
    """Whether heads learn their spans. false: every head always looks at `model.max_span` tokens."""
    ramp: Size = 32
    """Tokens over which a head's soft mask falls from 1 to 0, beyond its span."""
    span_init: Annotated[float, Range(0, 1)] = 0.0
    """Span of every head at the start, as a fraction of `model.max_span`."""
    trim_cache: bool = True
    """Keep only the past hidden states that a layer's longest head reaches. false: keep `model.max_span` of them."""
    memory_size: SizeOrNone = 0
    """Persistent vectors per head, in place of the feed-forward. 0: none. Needs `model.ffn_size=0`."""
    layer_order: str | None = None
    """Order of the blocks, a letter each, as in aaafff. a is attention, f is feed-forward. sandwich: attention first,
    feed-forward last, and pairs between them. null: they alternate."""
    dropout: Probability = 0.0
    """Dropout of the attention weights and inside the feed-forward."""
    attention_dropout: Probability | None = None
    """Dropout of the attention weights alone. null: as `model.dropout`."""
    ffn_dropout: Probability | None = None
    """Dropout inside the feed-forward alone. null: as `model.dropout`."""
    embedding_dropout: Probability = 0.0
    """Dropout after the embedding and before the output layer."""
    cutoffs: list[Count] = field(default_factory=list)
    """Adaptive input and output: word ids, by falling frequency, at which a new cluster begins. Empty: one size of
    vectors for all words."""
    division: Size = 4
    """Adaptive input and output: how many times smaller the vectors of each cluster are than those before."""
    tied: bool = True
    """Whether adaptive input and output share their vectors."""
    tied_output: bool = False
    """Whether the output layer of a vocabulary without `model.cutoffs` shares the vectors of the input."""
    norm: Annotated[str, OneOf(NORMS)] = "post"
    """Where a block is normalised. post: its sum with the residual, as published. pre: its input; a last norm stands
    before the output layer."""
    norm_kind: Annotated[str, OneOf(NORM_KINDS)] = "layer"
    """Kind of the norms. layer: LayerNorm. rms: RMSNorm, without mean and bias."""
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "relu"
    """What is between the two matrices of the feed-forward. relu2: ReLU squared. swiglu: a third matrix of
    `model.ffn_size` gates what passes."""
    qk_norm: bool = False
    """Whether queries and keys are scaled to one length, whatever the hidden states are."""
    init: Annotated[str, OneOf(INITS)] = "published"
    """How weights begin. small_branches: the last matrix of each block smaller, by the root of the number of blocks."""
    attention: Annotated[str, OneOf(ATTENTIONS)] = "auto"
    """Implementation of attention. auto: the fastest that runs here. All compute the same."""

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        check(self, "model.")
        if self.hidden_size % self.num_heads:
            low = [h for h in range(1, isqrt(self.hidden_size) + 1) if self.hidden_size % h == 0]
            allowed = {*low, *(self.hidden_size // h for h in low)}
            near = sorted(sorted(allowed, key=lambda h: abs(h - self.num_heads))[:3])
            raise UserError(
                f"model.num_heads={self.num_heads} does not divide model.hidden_size={self.hidden_size}; "
                f"take {either(near)}"
            )
        if self.memory_size and self.ffn_size:
            raise UserError(
                f"model.memory_size={self.memory_size} takes the place of the feed-forward, but "
                f"model.ffn_size={self.ffn_size}; set one of them to 0"
            )
        if self.activation != "relu" and not self.ffn_size:
            raise UserError(
                f"model.activation={self.activation} is that of the feed-forward, but model.ffn_size=0; leave it out"
            )
        self._check_adaptive_io()
        self.block_order()

    def _check_adaptive_io(self) -> None:
        if sorted(set(self.cutoffs)) != self.cutoffs:
            raise UserError(f"model.cutoffs={self.cutoffs} must increase")
        if self.tied_output and self.cutoffs:
            raise UserError(
                "model.tied_output=true goes with a vocabulary without model.cutoffs; of adaptive input and output "
                "model.tied=true shares the vectors"
            )
        if self.hidden_size < self.division ** len(self.cutoffs):
            raise UserError(
                f"model.division={self.division} leaves nothing of model.hidden_size={self.hidden_size} for the last "
                f"of {len(self.cutoffs) + 1} clusters; take a smaller one, or fewer model.cutoffs"
            )

    @property
    def head_size(self) -> int:
        """Return D, the size of a head's queries, keys and values."""
        return self.hidden_size // self.num_heads

    @property
    def ffn_matrices(self) -> int:
        """Return how many matrices a feed-forward has."""
        return 3 if self.activation == "swiglu" else 2

    @property
    def reads_by_frequency(self) -> bool:
        """Whether the vocabulary must be numbered by falling frequency."""
        return bool(self.cutoffs)

    def block_order(self) -> str:
        """Return a letter per block, from the input on: a for attention, f for feed-forward."""
        return layer_order.block_order(self.layer_order, self.num_layers, self.ffn_size)
