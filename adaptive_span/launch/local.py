"""Run the runs of a sweep on this machine, and choose their directories: Hydra's launcher."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from adaptive_span.config.identity import default_run_dir, flatten
from adaptive_span.config.overrides import quoted
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.hardware import capacity
from adaptive_span.launch import command_line
from adaptive_span.launch.run_names import give_names
from adaptive_span.reporting import sweep_table
from adaptive_span.reporting.run_directory import has_begun
from adaptive_span.terminal.program import STOPPED


class LocalLauncher(BasicLauncher):
    """Launch one run after the other, as Hydra's own launcher does.

    But all are checked before the first starts, and one that fails leaves the others alone.
    """

    __module__ = "hydra_plugins.adaptive_span_local"  # where Hydra looks for `_target_`

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check all runs, train them, and print their table."""
        assert self.config is not None
        if self.config.hydra.job.config_name != "launch":
            return _end(self._run_each(job_overrides, initial_job_idx))
        refuse_torchrun()
        configs = compose(self.config, self.hydra_context, job_overrides)
        for config in configs:
            capacity.check_here(config)
        sweep_directory = give_directories(configs, self.config)
        give_names(configs, job_overrides, sweep_directory)
        placed = [
            [*overrides, *(f"run.{key}={quoted(str(value))}" for key, value in vars(config.run).items() if value)]
            for overrides, config in zip(job_overrides, configs, strict=True)
        ]
        code = self._run_each(placed, initial_job_idx)
        begun = [run for config in configs if has_begun(run := Path(str(config.run.dir)))]
        if begun and len(configs) > 1:
            sweep_table.summarize(begun, sweep_directory)
        return _end(code)

    def _run_each(self, job_overrides: Sequence[Sequence[str]], first: int) -> int:
        """Run one after the other, and return an exit code.

        Each failure has been printed. 1: one of them met a bug. 2: one met a user's mistake, or lost a process. A
        signal that stops a run ends the sweep.
        """
        codes: set[int] = set()
        for number, overrides in enumerate(job_overrides, first):
            try:
                super().launch([overrides], number)
            except SystemExit as end:
                if not isinstance(end.code, int) or end.code in STOPPED:
                    raise
                codes.add(end.code)
        return min(codes, default=0)


def refuse_torchrun() -> None:
    """Raise `UserError` under torchrun, whose processes would each launch all runs."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("torchrun starts the processes of one run; for a sweep take hardware.processes=N instead")


def _end(code: int) -> Sequence[JobReturn]:
    """Return the nothing that Hydra expects, or end the process."""
    if code:
        raise SystemExit(code)
    return []


def compose(config: DictConfig, hydra: HydraContext | None, job_overrides: Sequence[Sequence[str]]) -> list[Config]:
    """Return the configuration of each run, checked.

    Raises:
        UserError: One of them is not allowed.
    """
    assert hydra is not None
    if config.hydra.sweeper.max_batch_size is not None:
        raise UserError(
            "hydra.sweeper.max_batch_size would cut a sweep into several; leave it out: hardware.parallel_jobs says "
            "how many of its jobs SLURM may run at a time"
        )
    configs = []
    for overrides in job_overrides:
        composed = hydra.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(composed):
            del composed["hydra"]
        if composed.sweep != config.sweep:
            raise UserError("sweep takes the name of one file; give one command for each")
        configs.append(command_line.typed(composed, Config))
        configs[-1].validate()
    return configs


def give_directories(configs: list[Config], config: DictConfig) -> Path:
    """Set `run.dir` of each run, once for all of its attempts, and return the directory of all.

    One run has `run.dir`, each of several its number below it. Where it is not given, the directory is the same for the
    same sweep. A search has given each of its runs a directory already.
    """
    if configs[0].search.trial is not None:
        return Path(str(configs[0].run.dir)).parent
    asked = {config.run.dir for config in configs}
    if len(asked) > 1:
        raise UserError("run.dir cannot be swept: each run of a sweep has a directory of its own below it")
    names = [default_run_dir(config) for config in configs]
    [directory] = asked
    if len(configs) == 1:
        configs[0].run.dir = directory or names[0]
        return Path(configs[0].run.dir)
    values = [flatten(each.as_dict()) for each in configs]
    values_of_key = {key: [each.get(key) for each in values] for key in sorted(set().union(*values))}
    varied = {key: of_runs for key, of_runs in values_of_key.items() if any(value != of_runs[0] for value in of_runs)}
    digest = hashlib.sha256(json.dumps([names, varied]).encode()).hexdigest()[:8]
    directory = directory or f"runs/{config.hydra.runtime.choices.get('sweep') or 'sweep'}-{digest}"
    for number, each in enumerate(configs):
        each.run.dir = str(Path(directory, str(number)))
    return Path(directory)
