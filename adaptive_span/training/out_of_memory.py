"""Explain that a step does not fit into memory: what was asked for, and which setting would fit."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from adaptive_span.attention import tiles
from adaptive_span.attention.dispatch import chosen
from adaptive_span.attention.head_groups import group_heads, tile_size
from adaptive_span.attention.span_bounds import SpanBounds
from adaptive_span.config.identity import flatten
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.schema import Config
from adaptive_span.distributed import Process, available_memory
from adaptive_span.errors import UserError
from adaptive_span.hardware.capacity import copies
from adaptive_span.model.cache import cache_length

GIB = 2**30
# What a layer keeps of a token beside weights, keys and values: so many hidden and feed-forward vectors. Fused kernels
# come with others that make again what they can.
KEPT, KEPT_FUSED = (11, 3), (9, 1)
OTHERS = "can't allocate memory|MPS backend out of memory"  # where it is no error of its own: on a CPU, of Apple's GPUs


@contextmanager
def explained(
    config: Config, process: Process, parameters: int, span_bounds: Callable[[], SpanBounds]
) -> Iterator[None]:
    """Turn running out of memory into one sentence with a way out."""
    available = available_memory(process)
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
        if not isinstance(error, torch.OutOfMemoryError) and not re.search(OTHERS, str(error)):
            raise
        name, _ = chosen(config.model.attention, process.device, config.model.head_size)
        if name == "banded" and tiles.run_on(process.device, torch.float32):
            name = "compiled"  # which keeps no weights
        config = replace(config, model=replace(config.model, attention=name))
        need = step_bytes(config, process.world_size, parameters, span_bounds())
        there = "an unknown amount" if available is None else f"{available / GIB:.1f} GiB"
        raise UserError(
            f"out of memory: a step asked for {asked[1] if asked else 'more'} at once and needs about "
            f"{need / GIB:.1f} GiB per process, of {there}; "
            f"{_advice(config, process.world_size, parameters, span_bounds(), available or need)}"
        ) from error


def step_bytes(config: Config, processes: int, parameters: int, span_bounds: SpanBounds) -> float:
    """Return a rough count of the bytes that one process holds at the height of a step.

    Parameters, gradients and optimizer state; the caches before and after it; what each layer keeps for the backward
    pass; and the widest layer's temporaries. What products read is of 2 bytes in bf16.
    """
    model, train = config.model, config.train
    rows, block = train.batch_size // processes // train.batch_split, model.block_size
    width = 2 if config.hardware.precision == "bf16" else 4
    state = parameters * (4 * copies(config) + (2 if width == 2 else 0))
    caches = 2 * train.batch_split * model.hidden_size * sum(cache_length(model, heads) for heads in span_bounds)
    kept, widest = [], 0.0
    for heads in span_bounds:
        if model.attention == "dense":  # every head as far as the longest one
            heads = [max(heads)] * len(heads)
        weights, at_once = _scores(model, heads)
        lengths = [bound + block for bound in heads]
        keys_values = 2 * model.head_size * sum(lengths)
        in_hidden, in_ffn = KEPT_FUSED if model.attention == "fused" else KEPT
        kept.append(weights + keys_values + block * (in_hidden * model.hidden_size + in_ffn * model.ffn_size))
        widest = max(widest, at_once)
    if config.hardware.activation_checkpointing:
        widest += max(kept)
        kept = [6.0 * block * model.hidden_size for _ in span_bounds]
    return state + float(width * rows * (caches + sum(kept) + widest))


def _scores(model: ModelConfig, heads: Sequence[int]) -> tuple[float, float]:
    """Return how many numbers per row of a layer's scores are kept for the backward pass, and how many at once."""
    block, copies = model.block_size, 2 if model.dropout else 1
    memory = block * model.memory_size * model.num_heads
    if model.attention == "fused":  # a group's products with the position vectors
        return 0.0, block * max(len(group) * bound for group, bound in group_heads(heads))
    if model.attention == "dense":  # weights by distance and by position
        scores = block * sum(bound + block for bound in heads) + memory
        return 1.5 * copies * scores, 3.0 * scores
    scores = block * sum(bound + tile_size(bound) for bound in heads) + memory
    if model.attention == "compiled":  # a byte a weight for what dropout leaves, drawn in four
        return (0.25 * scores, 1.0 * scores) if model.dropout else (0.0, 0.0)
    widest = block * max(len(group) * (bound + tile_size(bound)) for group, bound in group_heads(heads))
    return float(copies * scores), 3.0 * widest


def _advice(config: Config, processes: int, parameters: int, span_bounds: SpanBounds, available: float) -> str:
    """Return the mildest of the settings that would fit: more slices, then recomputing, then shorter blocks."""
    rows = config.train.batch_size // processes
    splits = [split for split in range(config.train.batch_split, rows + 1) if rows % split == 0]
    blocks = [config.model.block_size >> halvings for halvings in range(config.model.block_size.bit_length())]
    choices = [(split, config.hardware.activation_checkpointing, blocks[0]) for split in splits[1:]]
    choices += [(split, True, blocks[0]) for split in splits]
    choices += [(rows, True, block) for block in blocks[1:]]
    for split, recompute, block in choices:
        tried = replace(
            config,
            train=replace(config.train, batch_split=split),
            hardware=replace(config.hardware, activation_checkpointing=recompute),
            model=replace(config.model, block_size=block),
        )
        need = step_bytes(tried, processes, parameters, span_bounds)
        if need < 0.8 * available:
            before, after = flatten(config.as_dict()), flatten(tried.as_dict())
            settings = [f"{key}={str(after[key]).lower()}" for key in after if after[key] != before[key]]
            return f"{' '.join(settings)} would need about {need / GIB:.1f} GiB"
    return f"even one row at a time would not fit; take a smaller model than model={config.model.name}"
