"""What things cost on this machine: `python -m adaptive_span.benchmark attention|step|evaluate|loop|data`.

- attention: one layer's attention with its keys and values, forward and backward.
- step: forward, backward and update of a whole model, beside the same without attention.
- evaluate: scoring a text, from kept keys and values, beside projecting the cache again for every block.
- loop: the whole training loop against bare forward + backward + update.
- data: numbering 100 MB of bytes.

Ways are timed in turns, in one process; figures are medians. Memory is what one run adds at its height to a process
of its own. Needs torch, numpy and PyYAML; triton for fused attention.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import yaml
from torch import Tensor

from adaptive_span import flops, optimizer
from adaptive_span.attention import HiddenStates, choose, why_not_fused
from adaptive_span.config import ATTENTIONS, Config, DataConfig, ModelConfig, OptimizerConfig
from adaptive_span.model import AdaptiveSpanAttention, Transformer
from adaptive_span.span import AdaptiveSpan

CONF = Path(__file__).parent.parent / "conf"
VOCAB_SIZE = 205  # of enwik8

# Effective spans in tokens, read off the span figure of arXiv 1905.07799's 12-layer model, to a few per cent.
PAPER: list[list[float]] = [
    [32, 32.2, 32.4, 32.5, 32.6, 32.7, 32.8, 33.5],
    [32.2, 32.5, 32.8, 33, 33.2, 33.5, 33.8, 34.2],
    [32.2, 32.5, 32.8, 33, 33.4, 33.8, 34.2, 34.8],
    [32.2, 32.5, 32.8, 33, 33.2, 33.5, 33.8, 34.6],
    [32.2, 32.4, 32.7, 33, 33.2, 33.5, 33.8, 34.2],
    [33, 34, 37, 49, 53, 54, 65, 103],
    [35, 38, 42, 47, 70, 80, 93, 225],
    [33, 45, 48, 51, 82, 120, 160, 1120],
    [51, 78, 82, 110, 138, 140, 560, 3200],
    [32.5, 33.5, 36, 48, 75, 76, 100, 225],
    [38, 92, 101, 105, 130, 180, 255, 3900],
    [62, 63, 125, 128, 195, 300, 1050, 1700],
]

Way = Callable[[], object]
Row = dict[str, float | None]


def sizes(name: str) -> ModelConfig:
    """A model of `conf/model/`, the one home of its sizes."""
    values = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    return ModelConfig(**{key: value for key, value in values.items() if key != "defaults"})


def profile_spans(profile: str, config: ModelConfig) -> Tensor:
    """z of each head, (N, H), in tokens. paper: as published, each row as often as the model has layers for it."""
    layers, heads = config.num_layers, config.num_heads
    if profile == "paper":
        rows = [PAPER[layer * len(PAPER) // layers] for layer in range(layers)]
        spans = torch.tensor([(row * heads)[:heads] for row in rows]) - 32
    else:
        spans = torch.full((layers, heads), {"fresh": 0.0, "full": float(config.max_span)}[profile])
    return spans.clamp(0, config.max_span)


def model_of(arguments: argparse.Namespace, attention: str) -> Transformer:
    config = sizes(arguments.model)
    config.attention = attention
    torch.manual_seed(0)
    model = Transformer(config, VOCAB_SIZE).to(device_of(arguments))
    modules = [module for module in model.modules() if isinstance(module, AdaptiveSpan)]
    for module, spans in zip(modules, profile_spans(arguments.profile, config), strict=True):
        module.fraction.data.copy_(spans / module.max_span)
    return model


def device_of(arguments: argparse.Namespace) -> torch.device:
    return torch.device("cpu" if arguments.cpu or not torch.cuda.is_available() else "cuda")


def autocast(arguments: argparse.Namespace) -> torch.autocast:
    return torch.autocast(device_of(arguments).type, torch.bfloat16, enabled=arguments.dtype == "bf16")


def full_cache(model: Transformer, batch_size: int) -> list[Tensor]:
    device = model.positions.device
    lengths = [model.cache_length(heads) for heads in model.limits()]
    return [torch.randn(batch_size, length, model.config.hidden_size, device=device) for length in lengths]


def attention(arguments: argparse.Namespace, name: str) -> tuple[Way, float]:
    """One layer's attention; and the operations of its forward and backward pass, as `flops.py` counts them."""
    model = model_of(arguments, name)
    config, layer = model.config, arguments.layer
    block = model.attention_blocks[layer].attention
    limits, cache = model.limits()[layer], full_cache(model, arguments.batch_size)[layer]
    shape = (arguments.batch_size, config.block_size, config.hidden_size)
    hidden = torch.randn(shape, device=cache.device, requires_grad=True)
    query = torch.randn(shape, device=cache.device).unflatten(2, (config.num_heads, -1)).transpose(1, 2)
    query.requires_grad_()

    def way() -> None:
        with autocast(arguments):
            context = HiddenStates(cache, hidden, block.key.weight, block.value.weight, config.num_heads)
            output = choose(name)(query, context, model.positions, block.span.tokens(), config.ramp, limits)
        output.sum().backward()

    spans = model.spans()[layer].tolist()
    operations = 6 * config.hidden_size // config.num_heads * sum(spans) + 4 * config.hidden_size**2
    return way, 3 * operations * arguments.batch_size * config.block_size


def step(arguments: argparse.Namespace, name: str) -> tuple[Way, float]:
    """A training step; `name` may be 'none': without attention and its keys and values."""
    model = model_of(arguments, "dense" if name == "none" else name)
    config = model.config
    if name == "none":
        for block in model.attention_blocks:
            _leave_out_attention(block.attention)  # type: ignore[arg-type]
    update = optimizer.build(OptimizerConfig("adagrad", 0.0, 0.03), model.parameters())
    text = torch.randint(VOCAB_SIZE, (arguments.batch_size, config.block_size + 1), device=model.positions.device)
    limits, cache = model.limits(), full_cache(model, arguments.batch_size)

    def way() -> None:
        with autocast(arguments):
            nll, _ = model(text[:, :-1], text[:, 1:], cache, limits)
        nll.mean().backward()
        update.step()
        update.zero_grad()

    return way, 3 * _forward_operations(model) * text[:, 1:].numel()


def evaluate(arguments: argparse.Namespace, name: str) -> tuple[Way, float]:
    """Four blocks of a text; `name` may be 'dense training', which projects the cache again for every block."""
    model = model_of(arguments, name.split()[0]).eval()
    blocks = 4
    text = torch.randint(VOCAB_SIZE, (arguments.batch_size, model.config.block_size), device=model.positions.device)
    limits, cache = model.limits(), full_cache(model, arguments.batch_size)
    if not name.endswith("training"):
        with torch.inference_mode(), autocast(arguments):
            _, cache = model(text, text, model.empty_inference_cache(), limits)

    def way() -> None:
        past = cache
        with torch.inference_mode(), autocast(arguments):
            for _ in range(blocks):
                _, past = model(text, text, past, limits)

    return way, _forward_operations(model) * text.numel() * blocks


def _forward_operations(model: Transformer) -> float:
    return sum(flops.forward(model.config, VOCAB_SIZE, model.spans().tolist()).values())


def _leave_out_attention(module: AdaptiveSpanAttention) -> None:
    module.forward = lambda hidden, *_: module.output(module.query(hidden))  # type: ignore[method-assign]


def table(arguments: argparse.Namespace) -> dict[str, Row]:
    """Of each way: milliseconds, how often it fits into the first one's time, share of the matrix-product peak, MiB."""
    make = {"attention": attention, "step": step, "evaluate": evaluate}[arguments.what]
    names = [name for name in arguments.attention if name != "auto"]
    names = {"evaluate": ["dense training", *names], "step": [*names, "none"]}.get(arguments.what, names)
    made = {name: make(arguments, name) for name in names}
    seconds = in_turns(arguments.repeats, **{name: way for name, (way, _) in made.items()})
    peak = matrix_peak(arguments)
    rows: dict[str, Row] = {}
    for name, (way, operations) in made.items():
        rows[name] = {
            "ms": 1000 * seconds[name],
            "× faster": seconds[names[0]] / seconds[name],
            "% of peak": None if name == "none" else 100 * operations / seconds[name] / peak,
            "MiB": None if arguments.no_memory else memory(arguments, name, way),
        }
    return rows


def in_turns(repeats: int, **ways: Way) -> dict[str, float]:
    """Seconds of each way, the median of interleaved repeats after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matrix_peak(arguments: argparse.Namespace) -> float:
    """Operations a second of a large matrix product."""
    device = device_of(arguments)
    dtype, size = (
        (torch.bfloat16 if arguments.dtype == "bf16" else torch.float32),
        8192 if device.type == "cuda" else 2048,
    )
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    return 2 * size**3 / in_turns(10, product=lambda: left @ right)["product"]


def memory(arguments: argparse.Namespace, name: str, way: Way) -> float:
    """MiB that one run adds at its height: on a GPU of this process, on a CPU of a fresh one."""
    if device_of(arguments).type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_memory_here, arguments, name).result()


def _memory_here(arguments: argparse.Namespace, name: str) -> float:
    way, _ = {"attention": attention, "step": step, "evaluate": evaluate}[arguments.what](arguments, name)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the height is counted from here on
    way()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    """Of this process, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 2**10


def loop(arguments: argparse.Namespace) -> dict[str, Row]:
    from adaptive_span.corpus import prepare
    from adaptive_span.distributed import Process
    from adaptive_span.interruption import Interruption
    from adaptive_span.trainer import Run

    steps = 40
    with tempfile.TemporaryDirectory() as directory, Interruption() as interruption:
        config = Config(model=sizes(arguments.model), data=DataConfig("stdlib", directory=directory))
        config.optimizer = OptimizerConfig("adagrad", 0.07, 0.03)
        config.tracking.name = "none"
        config.train.steps, config.train.warmup_steps = 0, 1000
        config.train.batch_size, config.train.span_penalty = arguments.batch_size, 2e-6
        config.validation.every, config.validation.blocks = 1000, 1
        config.checkpoint.every, config.log.every = 1000, 10
        process = Process(0, 1, device_of(arguments))
        run = Run(config, prepare(config.data), process, Path(directory) / "run")
        (Path(directory) / "run").mkdir()

        def whole() -> None:  # with what the end of a run adds: a validation block and a checkpoint
            config.train.steps += steps
            run.go_on(interruption)

        def bare() -> None:
            training = run.training
            tokens, targets, _ = training.stream.next()
            for _ in range(steps):
                nll, _ = training.model(tokens, targets, training.caches[0], training.limits)
                (nll.mean() + 2e-6 * training.model.span_penalty()).backward()
                training.optimizer.step()
                training.optimizer.zero_grad()

        seconds = in_turns(arguments.repeats, loop=whole, bare=bare)
    overhead = 100 * (seconds["loop"] / seconds["bare"] - 1)
    return {
        "bare step": {"ms": 1000 * seconds["bare"] / steps, "% more": None},
        "training loop": {"ms": 1000 * seconds["loop"] / steps, "% more": overhead},
    }


def data(arguments: argparse.Namespace) -> dict[str, Row]:
    import numpy as np

    from adaptive_span.corpus import prepare

    with tempfile.TemporaryDirectory() as directory:
        text = np.random.default_rng(0).integers(32, 232, 1_000_000, dtype=np.uint8)
        with open(Path(directory) / "text", "wb") as file:
            for _ in range(100):
                file.write(text.tobytes())
        config = DataConfig("enwik8", file=f"{directory}/text", split=[90_000_000, 5_000_000, 5_000_000])
        config.directory = directory
        started = time.perf_counter()
        prepare(config)
        seconds, height = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        return {"100 MB of bytes": {"ms": 1000 * seconds, "MiB of the process": height}}


def all_that_run(arguments: argparse.Namespace) -> list[str]:
    config = sizes(arguments.model)
    dtype = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
    why_not = why_not_fused(device_of(arguments), config.hidden_size // config.num_heads, dtype)
    return ["dense", "banded"] if why_not else ["dense", "banded", "fused"]


def print_table(rows: dict[str, Row]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"{'':16}" + "".join(f"{column:>12}" for column in columns))
    for name, row in rows.items():
        cells = ["–" if row[column] is None else f"{row[column]:.4g}" for column in columns]
        print(f"{name:16}" + "".join(f"{cell:>12}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("attention", "step", "evaluate", "loop", "data"))
    parser.add_argument("--model", default="base", help="a name of conf/model/")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--profile", default="paper", choices=("paper", "fresh", "full"), help="the heads' spans")
    parser.add_argument("--layer", type=int, default=8, help="of `attention`, counted from 0")
    parser.add_argument("--attention", nargs="+", choices=ATTENTIONS, help="ways to compare; all that run here")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--no-memory", action="store_true", help="leave out the column that needs a process of its own")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    arguments.attention = arguments.attention or all_that_run(arguments)
    rows = {"loop": loop, "data": data}.get(arguments.what, table)(arguments)
    print(f"{arguments.what}, {_machine(arguments)}, torch {torch.__version__}")
    print_table(rows)
    if arguments.json:
        asked = {key: value for key, value in vars(arguments).items() if key != "json"}
        arguments.json.write_text(json.dumps(asked | {"machine": _machine(arguments), "rows": rows}, indent=1) + "\n")


def _machine(arguments: argparse.Namespace) -> str:
    if device_of(arguments).type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU with {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
