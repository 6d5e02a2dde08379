"""Run a whole training, for `launch.py` and for notebooks: from a configuration to its scores."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_span.config.identity import default_run_dir
from adaptive_span.config.schema import Config
from adaptive_span.hardware import capacity
from adaptive_span.reporting import run_directory

if TYPE_CHECKING:
    from adaptive_span.evaluation.result import Result


def train(config: Config, command: Sequence[str] = (), among_others: bool = False) -> "Result | None":
    """Train what `config` describes, or resume it, to its end, in as many processes as `config.hardware` asks for.

    Args:
        config: What to train, as `compose` returns it.
        command: The arguments that asked for it, for the run's record.
        among_others: Whether it is one of several runs, whose table shows what became of each: it ends in a few lines.

    Returns:
        The run's directory, last step and scores; None in all processes but the first of those that torchrun started.

    Raises:
        UserError: The configuration, the text, the run's directory or the machine does not allow it.
    """
    config.validate()
    capacity.check_here(config)
    capacity.warn_of_slurm_keys(config.hardware)
    config = replace(config, run=replace(config.run, dir=config.run.dir or default_run_dir(config)))
    directory = Path(str(config.run.dir))

    from adaptive_span.evaluation.result import print_result  # torch, which --help need not wait for
    from adaptive_span.launch import processes
    from adaptive_span.launch.search.judge import judge_of
    from adaptive_span.training import trainer

    run_directory.forget_failure(directory)
    with run_directory.failure_kept(config, among_others), run_directory.resumable(directory):
        result = processes.launch(config.hardware, trainer.train, config, command, judge_of(config))
    if result:
        print_result(result, config, among_others)
    return result
