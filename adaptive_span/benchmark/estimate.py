"""Estimate what a training needs before it is queued: memory, time and hours on a GPU that need not be here.

One step is counted on FakeTensors, with the spans of the start and with spans as published; the rest is the formula of
`cost_model.py`.
"""

from dataclasses import dataclass, replace

import torch

from adaptive_span.benchmark import cost_model, counting, profiles
from adaptive_span.benchmark.cost_model import CARDS, Card
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.schema import Config
from adaptive_span.data.vocabulary import tokenizer_of
from adaptive_span.errors import UserError, did_you_mean

GIB = 2**30
ALLOCATOR = 1.04  # times what tensors hold, of what a GPU's memory holds at the height of a step: measured
GRAPH = 1.9  # GiB more that are reserved where a step is a graph, which has memory of its own: measured, up to 2.2
WORDS = 267_735  # of WikiText-103, for a text of words of which nothing is known


@dataclass(frozen=True)
class Estimate:
    """What one process needs for a step of a training, and the training for all of them."""

    gib: float
    seconds: float
    hours: float
    tokens_per_second: float
    host_bound: bool


def card_of(names: list[str]) -> Card:
    """Return the GPU of that name, or the one of this machine.

    Raises:
        UserError: Nothing is known of it.
    """
    if names:
        if names[-1] not in CARDS:
            raise UserError(f"gpu={names[-1]} must be one of {', '.join(CARDS)}{did_you_mean(names[-1], list(CARDS))}")
        return CARDS[names[-1]]
    if not torch.cuda.is_available():
        raise UserError(f"there is no GPU here to estimate for; give gpu={'|'.join(CARDS)}")
    name = torch.cuda.get_device_name()
    for key, card in CARDS.items():
        if key in name.lower():
            return card
    raise UserError(f"nothing is known of {name}; give the nearest of gpu={'|'.join(CARDS)}")


def estimate(config: Config, card: Card, spans: torch.Tensor) -> Estimate:
    """Estimate a training whose heads have these spans all the time.

    Args:
        config: The training.
        card: The GPU.
        spans: z of each head (N, H), in tokens, without the ramp.
    """
    model, train, hardware = config.model, config.train, config.hardware
    processes = hardware.world_size
    per_process = replace(config, train=replace(train, batch_size=train.batch_size // processes))
    step = counting.count(per_process, spans, vocabulary(config.data))
    kernels = sum(cost_model.seconds(step.parts, step.visited, model.head_size, hardware.precision, card).values())
    one_graph = hardware.graphs == "auto" and not model.cutoffs  # an adaptive softmax waits for the host
    launching = cost_model.host(step.whole.launches, one_graph)
    seconds = max(kernels, launching) + cost_model.exchange(step.parameters, processes, card)
    tokens = train.batch_size * model.block_size
    hours = seconds * train.total_steps / 3600
    gib = ALLOCATOR * step.peak / GIB + (GRAPH if one_graph else 0.0)
    return Estimate(gib, seconds, hours, tokens / seconds, launching > kernels)


def vocabulary(data: DataConfig) -> int:
    """Return how many symbols a text has, as far as that is known before it is read."""
    if data.vocab_size is None and data.tokenizer is not None:
        return len(tokenizer_of(data).symbols)
    return data.vocab_size or (256 if data.level == "byte" else WORDS)


def cases(config: Config) -> dict[str, torch.Tensor]:
    """Return the spans to estimate with, by their name: (N, H) in tokens, without the ramp."""
    model = config.model
    shape = (model.num_layers, model.num_heads)
    if not model.adaptive_span:
        return {"every head at its maximum": torch.full(shape, float(model.max_span))}
    start = torch.full(shape, model.span_init * model.max_span)
    return {"with the spans of the start": start, "with spans as published": profiles.spans("paper", model)}


def print_estimates(config: Config, card: Card) -> None:
    """Print a line per case, and what the numbers rest on."""
    train, hardware = config.train, config.hardware
    processes = "one process" if hardware.world_size == 1 else f"{hardware.world_size} processes"
    print(
        f"{config.data.name}, {config.model.name}: {train.batch_size} rows of {config.model.block_size} tokens in "
        f"{processes}, {hardware.precision}, on {card.name}; {train.total_steps:,} steps"
    )
    print(f"{'':30}{'GiB/process':>14}{'ms/step':>12}{'tokens/s':>12}{'hours':>10}")
    for name, spans in cases(config).items():
        result = estimate(config, card, spans)
        bound = "  the host is what it waits for" if result.host_bound else ""
        print(
            f"{name:30}{result.gib:14.1f}{1000 * result.seconds:12.1f}{result.tokens_per_second:12,.0f}"
            f"{result.hours:10.1f}{bound}"
        )
        if result.gib > card.memory:
            print(f"  more than the {card.memory:g} GiB of {card.name}: raise train.batch_split={train.batch_split}")
    origin = "measured on one" if card.measured else "computed from its data sheet"
    print(
        f"counted: launches, bytes, operations, memory. {card.name}'s rates: {origin}. Efficiency and host: measured "
        f"beside one H200. Not in it: validation, checkpoints."
    )
