"""Define what is measured of a model: its attention, a training step, scoring a text, by each implementation."""

from dataclasses import dataclass, field, replace
from functools import cache

import torch

from adaptive_span.attention import SpanGeometry
from adaptive_span.attention.context import HiddenStates, join
from adaptive_span.attention.dispatch import choose
from adaptive_span.benchmark import profiles
from adaptive_span.benchmark.profiles import VOCAB_SIZE
from adaptive_span.benchmark.timing import Workload, peak_memory, time_interleaved
from adaptive_span.config.optimizer_schema import OptimizerConfig
from adaptive_span.hardware import matrix_peak
from adaptive_span.model import flops
from adaptive_span.model.blocks import AdaptiveSpanAttention
from adaptive_span.model.cache import Cache, HiddenStateCache
from adaptive_span.model.low_precision import low_precision
from adaptive_span.model.transformer import Transformer
from adaptive_span.training import optimizer

Row = dict[str, float | None]
OTHER_PRECISION = "dense fp32"  # beside a step in bf16


@dataclass(frozen=True)
class Settings:
    """What is measured, and on which device."""

    model: str = "base"
    profile: str = "paper"
    scale: float = 1.0  # of the profile's spans
    batch_size: int = 2
    layer: int | None = None  # of `attention`, counted from 1; None: all of them
    dropout: float = 0.0
    precision: str = "fp32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def build(self, attention: str) -> Transformer:
        """Make the model, with the spans of the profile."""
        config = replace(profiles.sizes(self.model), attention=attention, dropout=self.dropout)
        return profiles.build(config, profiles.spans(self.profile, config, self.scale), self.device)

    def cache(self, model: Transformer) -> HiddenStateCache:
        """Make a full cache, as training finds it: per layer (B, L, C)."""
        return profiles.full_cache(model, self.batch_size, self.dtype)

    def autocast(self) -> torch.autocast:
        """Make the context in which matrix products are in `precision`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def layers(self, count: int) -> range:
        """Return the indices of the layers to measure, of a model with `count` layers."""
        return range(count) if self.layer is None else range(self.layer - 1, self.layer)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the hidden states."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def attention(settings: Settings, name: str) -> Workload:
    """Make a workload: attention with its projections, forward and backward, layer by layer."""
    model = settings.build(name)
    config, attend = model.config, choose(name)
    bounds, cache = profiles.bounds_in_training(model), settings.cache(model)
    shape = (settings.batch_size, config.block_size, config.hidden_size)
    hidden = torch.randn(shape, device=settings.device, dtype=settings.dtype, requires_grad=True)

    def workload() -> None:
        for layer in settings.layers(config.num_layers):
            module = model.attention_blocks[layer].attention
            assert isinstance(module, AdaptiveSpanAttention)
            assert module.span is not None
            with settings.autocast():
                weights = module.query.weight, module.key.weight, module.value.weight
                geometry = SpanGeometry(module.span.tokens(), config.ramp, bounds[layer])
                states = join(cache.layers[layer], hidden, geometry.longest)
                output = attend(
                    HiddenStates(states, hidden, weights, config.num_heads), model.position_embedding, geometry,
                    config.dropout,
                ).output  # fmt: skip
            output.sum().backward()

    return workload


def step(settings: Settings, name: str) -> Workload:
    """Make a workload: forward, backward and update.

    Args:
        settings: What to measure.
        name: An implementation of attention; 'none' leaves out attention, its keys and values. A precision may follow
            it, as in 'dense fp32'.
    """
    name, _, precision = name.partition(" ")
    settings = replace(settings, precision=precision or settings.precision)
    model = settings.build("dense" if name == "none" else name)
    if name == "none":
        for block in model.attention_blocks:
            _leave_out_attention(block.attention)  # type: ignore[arg-type]
    update = optimizer.build(OptimizerConfig("adagrad", 0.0, 0.03), model.named_parameters())
    shape = (settings.batch_size, model.config.block_size + 1)
    text = torch.randint(VOCAB_SIZE, shape, device=settings.device)
    bounds, cache = profiles.bounds_in_training(model), settings.cache(model)

    def workload() -> None:
        with low_precision(model, settings.precision):
            with settings.autocast():
                nll, _ = model(text[:, :-1], text[:, 1:], cache, bounds)
            nll.mean().backward()
        update.step()
        update.zero_grad()

    return workload


BLOCKS = 4


def evaluate(settings: Settings, name: str) -> Workload:
    """Make a workload: score `BLOCKS` blocks of a text.

    Args:
        settings: What to measure.
        name: An implementation of attention. 'dense training' projects the cache again for every block.
    """
    model = settings.build(name.split()[0]).eval()
    text = torch.randint(VOCAB_SIZE, (settings.batch_size, model.config.block_size), device=settings.device)
    bounds, full = model.span_bounds(), settings.cache(model)
    cache: Cache = full
    if not name.endswith("training"):
        longest, cache = max(past.size(1) for past in full.layers), model.empty_inference_cache()
        with torch.inference_mode(), settings.autocast(), low_precision(model, settings.precision):
            for _ in range(0, longest, text.size(1)):
                _, cache = model(text, text, cache, bounds)

    def workload() -> None:
        past = cache
        with torch.inference_mode(), settings.autocast(), low_precision(model, settings.precision):
            for _ in range(BLOCKS):
                _, past = model(text, text, past, bounds)

    return workload


_matrix_peak = cache(matrix_peak.measure)  # once in a process
_MAKERS = {"attention": attention, "step": step, "evaluate": evaluate}


def table(what: str, settings: Settings, names: list[str], repeats: int, with_memory: bool = True) -> dict[str, Row]:
    """Measure one workload by several implementations, interleaved.

    Returns:
        Per implementation: milliseconds, how often it fits into the time of the first one, share of the peak of matrix
        products, and MiB (None where not asked for).
    """
    make = _MAKERS[what]
    workloads = {name: make(settings, name) for name in names}
    seconds = time_interleaved(repeats, **workloads)
    operations, peak = _operations(what, settings), _matrix_peak(settings.device, settings.precision)
    return {
        name: {
            "ms": 1000 * seconds[name],
            "× faster": seconds[names[0]] / seconds[name],
            "% of peak": None if name in ("none", OTHER_PRECISION) else 100 * operations / seconds[name] / peak,
            "MiB": peak_memory(settings.device, workload, make, settings, name) if with_memory else None,
        }
        for name, workload in workloads.items()
    }


def growth(settings: Settings, names: list[str], repeats: int, with_memory: bool = True) -> dict[str, Row]:
    """Measure a training step while spans grow: the profile's times 0 to 16, and every head at the maximum."""
    rows: dict[str, Row] = {}
    stages = [replace(settings, scale=scale) for scale in (0.0, 0.25, 1.0, 4.0, 16.0)]
    for stage in [*stages, replace(settings, profile="full")]:
        mean = stage.build("dense").spans().mean().item()
        for name, row in table("step", stage, names, repeats, with_memory).items():
            rows[f"{name}, {mean:.0f} tokens"] = {"mean span": mean, **row}
    return rows


def _operations(what: str, settings: Settings) -> float:
    """Return the floating-point operations that the learned spans make necessary, as `flops.py` counts them."""
    model = settings.build("dense")
    spans, config = model.spans().tolist(), model.config
    tokens = settings.batch_size * config.block_size
    if what == "attention":
        chosen = [spans[layer] for layer in settings.layers(config.num_layers)]
        scores = 6 * config.head_size * sum(map(sum, chosen))
        return flops.TRAINING * (scores + 6 * config.hidden_size**2 * len(chosen)) * tokens
    forward = sum(flops.forward(config, VOCAB_SIZE, spans).values()) * tokens
    return forward * BLOCKS if what == "evaluate" else flops.TRAINING * forward


def _leave_out_attention(module: AdaptiveSpanAttention) -> None:
    module.forward = lambda hidden, *_: module.output(module.query(hidden))  # type: ignore[method-assign]
