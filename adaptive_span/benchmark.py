"""What things cost on this machine: `python -m adaptive_span.benchmark step|loop|data`.

- step: forward, backward and update of a model whose heads look as far as those of the published 12-layer model.
- loop: the whole training loop against bare forward + backward + update, in turns, in one process.
- data: numbering 100 MB of bytes.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml

from adaptive_span import optimizer
from adaptive_span.config import ATTENTIONS, Config, DataConfig, HardwareConfig, ModelConfig, OptimizerConfig
from adaptive_span.corpus import prepare
from adaptive_span.distributed import Process, autocast, pick_device
from adaptive_span.model import Transformer
from adaptive_span.span import AdaptiveSpan

CONF = Path(__file__).parent.parent / "conf"

# Effective spans in tokens, read off the span figure of arXiv 1905.07799's 12-layer model, to a few per cent.
PAPER = [
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


def sizes(name: str) -> ModelConfig:
    """A model of `conf/model/`, the one home of its sizes."""
    return ModelConfig(**yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text()))


def set_spans(model: Transformer, profile: str) -> None:
    """paper: as published, each row as often as the model has layers for it; fresh: all 0; full: all at the maximum."""
    modules = [module for module in model.modules() if isinstance(module, AdaptiveSpan)]
    for index, module in enumerate(modules):
        row = PAPER[index * len(PAPER) // len(modules)]
        spans = {"paper": torch.tensor(row) - 32, "fresh": torch.zeros(1), "full": torch.full((1,), module.max_span)}
        module.fraction.data.copy_((spans[profile].clamp(min=0) / module.max_span)[: module.fraction.numel()])


def in_turns(repeats: int, **ways: Callable[[], object]) -> dict[str, float]:
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


def step(arguments: argparse.Namespace) -> dict[str, float]:
    config = sizes(arguments.model)
    config.attention = arguments.attention
    hardware = HardwareConfig(precision=arguments.dtype)
    device = pick_device(hardware)
    torch.manual_seed(0)
    model = Transformer(config, 205).to(device)
    set_spans(model, arguments.profile)
    update = optimizer.build(OptimizerConfig("adagrad", 0.0, 0.03), model.parameters())
    text = torch.randint(205, (arguments.batch_size, config.block_size + 1), device=device)
    limits = model.limits()
    lengths = [model.cache_length(heads) for heads in limits]
    cache = [torch.randn(arguments.batch_size, length, config.hidden_size, device=device) for length in lengths]

    def forward_backward() -> None:
        model.zero_grad()
        with autocast(hardware, device):
            nll, _ = model(text[:, :-1], text[:, 1:], cache, limits)
        nll.mean().backward()

    def whole() -> None:
        forward_backward()
        update.step()

    forward_backward()
    seconds = in_turns(arguments.repeats, forward_backward=forward_backward, step=whole)
    tokens = arguments.batch_size * config.block_size
    return {
        "forward + backward (s)": seconds["forward_backward"],
        "step with update (s)": seconds["step"],
        "tokens/s": tokens / seconds["step"],
        "peak memory (GiB)": _peak(device),
    }


def loop(arguments: argparse.Namespace) -> dict[str, float]:
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
        process = Process(0, 1, pick_device(config.hardware))
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
    return {
        "bare step (s)": seconds["bare"] / steps,
        "step of the loop (s)": seconds["loop"] / steps,
        "overhead (%)": 100 * (seconds["loop"] / seconds["bare"] - 1),
    }


def data(arguments: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        text = np.random.default_rng(0).integers(32, 232, 1_000_000, dtype=np.uint8)
        with open(Path(directory) / "text", "wb") as file:
            for _ in range(100):
                file.write(text.tobytes())
        config = DataConfig("enwik8", file=f"{directory}/text", split=[90_000_000, 5_000_000, 5_000_000])
        config.directory = directory
        started = time.perf_counter()
        prepare(config)
        return {"seconds": time.perf_counter() - started, "peak memory (GiB)": _peak(torch.device("cpu"))}


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "loop", "data"))
    parser.add_argument("--model", default="small", help="a name of conf/model/")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--profile", default="paper", choices=("paper", "fresh", "full"))
    parser.add_argument("--attention", default="auto", choices=ATTENTIONS)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    figures = {"step": step, "loop": loop, "data": data}[arguments.what](arguments)
    for name, figure in figures.items():
        print(f"{name:24} {figure:10.4g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(vars(arguments) | {"json": None, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
