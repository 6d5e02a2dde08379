"""Time the prediction of a token, with each head's own span, its layer's longest, and the maximum."""

import functools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_span.benchmark.profiles import VOCAB_SIZE
from adaptive_span.benchmark.timing import CLEAR_REFS, Workload, process_status, time_interleaved
from adaptive_span.benchmark.workloads import Row, Settings
from adaptive_span.hardware import step_graph
from adaptive_span.hardware.step_graph import StepGraph
from adaptive_span.model.decoder import Decoder
from adaptive_span.model.transformer import Transformer

TOKENS = 10  # that a workload predicts
LINEAR = "linear layers alone"


def table(settings: Settings, repeats: int) -> dict[str, Row]:
    """Measure a token of each text.

    Returns:
        Per kind of span: milliseconds of a step, of its attention without projections, and MB of keys and values, which
        each step reads once. A row of their own for the products of all linear layers with one token of each text.
    """
    model = settings.build("auto").eval()
    spans: list[list[float]] = model.spans().tolist()
    given = {
        "learned spans": spans,
        "longest head of each layer": [[max(heads)] * len(heads) for heads in spans],
        "maximum span": [[float(model.config.max_span)] * len(heads) for heads in spans],
    }
    graphs, _ = step_graph.choose("auto", settings.device)
    decoders = {name: Decoder(model, settings.batch_size, each, graphs) for name, each in given.items()}
    token = torch.randint(VOCAB_SIZE, (settings.batch_size,), device=settings.device)

    def repeated(workload: Callable[[], object], recorded: bool = graphs) -> Workload:
        graph = StepGraph()

        def replayed() -> object:
            return graph.run("", workload, workload)

        one = replayed if recorded else workload

        def run() -> None:
            with torch.inference_mode():
                for _ in range(TOKENS):
                    one()

        return run

    steps = {name: repeated(functools.partial(decoder.read, token), False) for name, decoder in decoders.items()}
    attentions = {f"attention, {name}": repeated(_attention(decoder)) for name, decoder in decoders.items()}
    seconds = time_interleaved(repeats, **steps, **attentions, linear=repeated(_linear_layers(model, settings)))
    milliseconds = {name: 1000 * each / TOKENS for name, each in seconds.items()}
    rows: dict[str, Row] = {
        name: {
            "ms a token": milliseconds[name],
            "attention, ms": milliseconds[f"attention, {name}"],
            "cache, MB": decoder.cache_bytes / 1e6,
        }
        for name, decoder in decoders.items()
    }
    return rows | {LINEAR: {"ms a token": milliseconds["linear"], "attention, ms": None, "cache, MB": None}}


def steadiness(settings: Settings, tokens: int) -> dict[str, Row]:
    """Predict many tokens of each text, and compare the first with the last.

    Their times are taken in turns, of a text that begins while another one ends: a busy machine slows down both.

    Args:
        settings: What to measure.
        tokens: Of each text, at least 2.

    Returns:
        For the first and the last thousand: milliseconds of a step (the median), MB of keys and values, and MiB that
        the process holds then; on a GPU, that tensors take there.
    """
    graphs, _ = step_graph.choose("auto", settings.device)
    model = settings.build("auto").eval()
    text = torch.randint(VOCAB_SIZE, (tokens, settings.batch_size), device=settings.device)
    part = min(1000, tokens // 2)
    ending = Decoder(model, settings.batch_size, graphs=graphs)
    held: dict[int, float | None] = {}  # after so many tokens
    for number in range(tokens - part):  # a loop over the text itself would make a tensor of every token at once
        ending.read(text[number])
        if number + 1 in (part, tokens - part):
            held[number + 1] = _memory(settings.device)
    decoders = Decoder(model, settings.batch_size, graphs=graphs), ending
    seconds = [[_seconds(decoder, token) for decoder in decoders] for token in text[tokens - part :]]
    names = f"tokens 1 to {part:,}", f"tokens {tokens - part + 1:,} to {tokens:,}"
    return {
        name: {
            "ms a token": 1000 * statistics.median(each),
            "cache, MB": decoder.cache_bytes / 1e6,
            "memory, MiB": held[after],
        }
        for name, each, decoder, after in zip(
            names, zip(*seconds, strict=True), decoders, (part, tokens - part), strict=True
        )
    }


def _seconds(decoder: Decoder, token: Tensor) -> float:
    started = time.perf_counter()
    decoder.read(token)
    if token.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _memory(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    return process_status("VmRSS") if CLEAR_REFS.exists() else None


def _attention(decoder: Decoder) -> Workload:
    """Return a workload: the attention of all heads, from projections that are there."""
    shape = len(decoder.present), decoder.layers[0].weight.size(1)
    projected = torch.randn(shape, device=decoder.present.device)

    def workload() -> None:
        for layer in decoder.layers:
            layer.rings.attend(projected)

    return workload


def _linear_layers(model: Transformer, settings: Settings) -> Workload:
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    inputs = [torch.randn(settings.batch_size, weight.size(1), device=settings.device) for weight in weights]

    def workload() -> None:
        for states, weight in zip(inputs, weights, strict=True):
            F.linear(states, weight)

    return workload
