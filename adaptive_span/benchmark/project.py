"""Measure what the project adds to a bare training: its loop, its data, several processes."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from adaptive_span.benchmark import profiles
from adaptive_span.benchmark.timing import process_status, time_interleaved
from adaptive_span.benchmark.workloads import Row, Settings
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.config.optimizer_schema import OptimizerConfig
from adaptive_span.config.schema import Config
from adaptive_span.data.corpus import prepare
from adaptive_span.distributed import Process, process_group
from adaptive_span.training.interruption import Interruption
from adaptive_span.training.state import TrainState
from adaptive_span.training.trainer import Trainer

STEPS = 40


def _config(settings: Settings, directory: str) -> Config:
    config = Config(
        model=profiles.sizes(settings.model), data=DataConfig("stdlib", source="stdlib", directory=directory)
    )
    config.optimizer = OptimizerConfig("adagrad", 0.07, 0.03)
    config.tracking.name = "none"
    config.train.steps, config.train.warmup_steps = 0, 1000
    config.train.batch_size, config.train.span_penalty = settings.batch_size, 2e-6
    config.hardware.precision = settings.precision
    config.validation.every, config.validation.blocks = 1000, 1
    config.checkpoint.every, config.log.every = 1000, 10
    return config


def loop(settings: Settings, repeats: int) -> dict[str, Row]:
    """Time the whole training loop against bare forward, backward and update, interleaved."""
    with tempfile.TemporaryDirectory() as directory, Interruption() as interruption:
        config = _config(settings, directory)
        run = Trainer(config, prepare(config.data), Process(0, 1, settings.device), Path(directory) / "run", ())
        (Path(directory) / "run").mkdir()

        def whole() -> None:  # with what the end of a run adds: a validation block and a checkpoint
            config.train.steps += STEPS
            run.fit(interruption)

        def bare() -> None:
            training = run.state
            block, _ = training.stream.next()
            for _ in range(STEPS):
                nll, _ = training.model(block[:, :-1], block[:, 1:], training.caches[0], training.span_bounds)
                (nll.mean() + 2e-6 * training.model.span_penalty()).backward()
                training.optimizer.step()
                training.optimizer.zero_grad()

        with run.tracked():
            seconds = time_interleaved(repeats, loop=whole, bare=bare)
    overhead = 100 * (seconds["loop"] / seconds["bare"] - 1)
    return {
        "bare step": {"ms": 1000 * seconds["bare"] / STEPS, "% more": None},
        "training loop": {"ms": 1000 * seconds["loop"] / STEPS, "% more": overhead},
    }


def data(settings: Settings, repeats: int) -> dict[str, Row]:
    """Time the numbering of 100 MB of bytes."""
    with tempfile.TemporaryDirectory() as directory:
        text = np.random.default_rng(0).integers(32, 232, 1_000_000, dtype=np.uint8)
        with open(Path(directory) / "text", "wb") as file:
            for _ in range(100):
                file.write(text.tobytes())
        config = DataConfig(
            "text", file=f"{directory}/text", split=[90_000_000, 5_000_000, 5_000_000], directory=directory
        )
        config.ids, config.line_ends = "appearance", "eos"
        started, before = time.perf_counter(), process_status("VmRSS")
        prepare(config)
        return {
            "100 MB of bytes": {"ms": 1000 * (time.perf_counter() - started), "MiB": process_status("VmHWM") - before}
        }


def processes(settings: Settings, repeats: int) -> dict[str, Row]:
    """Time updates of 1 and of 2 processes with as many rows per process.

    A process has half of the cores of a CPU in both cases. The bandwidth is that at which the 2 add up a tensor of the
    gradients' size: 8 P (G − 1) / G bytes in that time.
    """
    with tempfile.TemporaryDirectory() as directory:
        config = _config(settings, directory)
        prepare(config.data)
        timings: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for _ in range(repeats):
            for count, figures in timings.items():
                whole = replace(config, train=replace(config.train, batch_size=count * settings.batch_size))
                figures.append(_in_workers(whole, count, settings.device.type))
    medians = {count: np.median(figures, axis=0).tolist() for count, figures in timings.items()}
    return {
        f"{count} process{'es' if count > 1 else ''}": {
            "ms": 1000 * seconds,
            "tokens/s": count * settings.batch_size * config.model.block_size / seconds,
            "% of linear": 100 * medians[1][0] / seconds,
            "GB/s": bandwidth or None,
        }
        for count, (seconds, bandwidth) in medians.items()
    }


def _in_workers(config: Config, count: int, device: str) -> tuple[float, float]:
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id=f"benchmark-{count}",
        max_restarts=0,
    )
    times: tuple[float, float] = elastic_launch(launch, _time_update)(config, device)[0]
    return times


def _time_update(config: Config, device: str) -> tuple[float, float]:
    """Return, in a worker, the median seconds of an update, and GB/s between the processes (0 for one alone)."""
    with process_group(HardwareConfig(device)) as process:
        if device == "cpu":
            torch.set_num_threads(max(1, torch.get_num_threads() // (2 if process.world_size == 1 else 1)))
        training = TrainState(config, prepare(config.data), process)
        seconds = time_interleaved(10, update=training.update)["update"]
        if process.world_size == 1:
            return seconds, 0.0
        gradients = torch.zeros(sum(p.numel() for p in training.model.parameters()), device=process.device)
        exchange = time_interleaved(10, add_up=lambda: dist.all_reduce(gradients))["add_up"]
        sent = 2 * gradients.nbytes * (process.world_size - 1) / process.world_size
        return seconds, sent / exchange / 1e9
