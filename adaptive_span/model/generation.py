"""Let a model go on writing a text."""

from collections.abc import Iterator

import torch
from torch import Tensor

from adaptive_span.model.decoder import Decoder
from adaptive_span.model.sampling import Sampling
from adaptive_span.model.transformer import Transformer


def stream(
    model: Transformer,
    tokens: Tensor,
    length: int,
    sampling: Sampling | None = None,
    seed: int = 1,
    graphs: bool = False,
) -> Iterator[Tensor]:
    """Yield the next token of each text, (B,), as soon as it is drawn. See `Transformer.generate`."""
    decoder = Decoder(model, len(tokens), graphs=graphs)
    yield from continued(decoder, tokens, length, sampling or Sampling(), seed)


def continued(decoder: Decoder, tokens: Tensor, length: int, sampling: Sampling, seed: int) -> Iterator[Tensor]:
    """Yield the next token of each text, (B,), by a decoder that has read nothing yet."""
    generator = torch.Generator(tokens.device).manual_seed(seed)
    log_probabilities = decoder.read_prompt(tokens)
    for number in range(length):
        drawn = sampling.draw(log_probabilities, generator)
        yield drawn
        if number + 1 < length:
            log_probabilities = decoder.read(drawn)
