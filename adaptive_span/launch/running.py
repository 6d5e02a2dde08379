"""A whole training, for `launch.py` and for notebooks: from a configuration to its scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adaptive_span.config.identity import default_run_dir
from adaptive_span.config.schema import Config, RunConfig
from adaptive_span.hardware import capacity
from adaptive_span.reporting import run_directory
from adaptive_span.reporting.tracking import SCORES


@dataclass(frozen=True)
class Result:
    """What came of a training."""

    directory: Path
    step: int
    scores: dict[str, dict[str, float]]  # of valid and of test: bpc, nats, tokens; of words also ppl


def train(config: Config) -> Result:
    """Train what `config` describes, or resume it, to its end, and return its scores. Raises `UserError`."""
    directory = run(config)
    scores = json.loads((directory / SCORES).read_text(encoding="utf-8"))["splits"]
    return Result(directory, run_directory.last_step(directory), scores)


def run(config: Config, command: Sequence[str] = (), among_others: bool = False) -> Path:
    """Train in as many processes as `config.hardware` asks for, and return the run's directory.

    Args:
        command: The words that asked for it, for the run's record.
        among_others: Whether it is one of several runs, whose table shows what became of each.
    """
    config.validate()
    capacity.check_here(config)
    capacity.warn_of_slurm_keys(config.hardware)
    config = replace(config, run=RunConfig(config.run.dir or default_run_dir(config)))
    directory = Path(str(config.run.dir))

    from adaptive_span.launch import processes
    from adaptive_span.training import trainer  # torch, which --help need not wait for

    run_directory.forget_failure(directory)
    with run_directory.failure_kept(config, among_others), run_directory.resumable(directory):
        processes.launch(config.hardware, trainer.train, config, command)
    return directory
