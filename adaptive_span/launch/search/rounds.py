"""Ask Optuna for trials, as many as may run at once, have them run, tell it what they came to, and so on."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from adaptive_span.checkpoint.paths import last_step
from adaptive_span.config.identity import default_run_dir
from adaptive_span.config.overrides import end_with_steps, quoted
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.hardware import capacity
from adaptive_span.launch import local
from adaptive_span.launch.run_names import short_names
from adaptive_span.launch.search import report, space
from adaptive_span.launch.search.study import JOURNAL, open_study
from adaptive_span.reporting import run_record
from adaptive_span.reporting.run_directory import claimed, is_finished, pruned, refuse_changes
from adaptive_span.terminal.plain_text import masked, one_line
from adaptive_span.terminal.printing import print_line
from adaptive_span.terminal.program import STOPPED


def ask(study: Study, distributions: dict[str, BaseDistribution], in_parallel: bool) -> FrozenTrial:
    """Return a new trial. It is seeded by its number, so that a search that was resumed asks for what it would have.

    Args:
        study: Which knows what the trials before came to.
        distributions: What to choose from, by key.
        in_parallel: Whether others run beside it, of which it should keep away.
    """
    study.sampler = TPESampler(seed=len(study.trials), constant_liar=in_parallel)
    number = study.ask(distributions).number
    return study.trials[number]


class Search:
    """A search, and the directory that it is kept in. Made only of what could be run: every end of a range is checked.

    Args:
        launcher: Hydra's, for this machine or for SLURM.
        ranges: As the sweep's file holds them.
        settings: The other arguments of each run.

    Raises:
        UserError: A range is none, or a value in it is not allowed.
    """

    def __init__(self, launcher: Any, ranges: Any, settings: list[str]):
        self.launcher, self.settings, self.ranges = launcher, settings, ranges
        self.space = space.distributions(ranges)
        self.is_here = isinstance(launcher, local.LocalLauncher)
        if self.is_here:
            local.refuse_torchrun()
        corners = [end_with_steps([*settings, *space.arguments(values)]) for values in space.corners(self.space)]
        self.config, *_ = self._composed(corners)
        self.trials = self.config.search.trials or 0
        self.at_once = 1 if self.is_here else self.config.hardware.parallel_jobs
        self.directory = Path(self.config.run.dir or self._default_directory())
        self.codes: set[int] = set()  # with which launches ended

    def run(self) -> None:
        """Search, or resume a search, to its last trial; print and write what it came to.

        Raises:
            UserError: The directory holds another search, or the cluster refuses its jobs.
            SystemExit: A signal has stopped it, or, at its end, a trial has failed.
        """
        with claimed(self.directory):
            if not (self.directory / JOURNAL).exists() and run_record.directories_below(self.directory):
                raise UserError(f"run.dir={self.directory} holds runs, but no search; give another run.dir")
            self.study = open_study(self.directory)
            self._refuse_another()
            while trials := self._next_round():
                self._launch(trials)
            report.close(self.study, self.space, self.directory, self.config)
        if self.codes:
            raise SystemExit(min(self.codes))

    def _composed(self, jobs: list[list[str]]) -> list[Config]:
        configs = local.compose(self.launcher.config, self.launcher.hydra_context, jobs)
        for config in configs if self.is_here else []:
            capacity.check_here(config)
        return configs

    def _default_directory(self) -> str:
        """Return a directory that is the same for the same search, however many trials it is to have."""
        what = [default_run_dir(self.config), self.config.train.total_steps, self.ranges]
        name = self.launcher.config.hydra.runtime.choices.get("sweep")
        return f"runs/{name}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]}"

    def _refuse_another(self) -> None:
        """Refuse to go on with what another search has found. Its first start keeps what it is."""
        total = self.config.train.total_steps
        if not (begun := self.study.user_attrs):
            self.study.set_user_attr("begun", {"ranges": self.ranges, "steps": total, "config": self.config.as_dict()})
            return
        for what, now in (("ranges", self.ranges), ("steps", total)):
            if (before := begun["begun"][what]) != now:
                raise UserError(
                    f"run.dir={self.directory} holds a search with other {what} ({before} → {now}); take back the "
                    f"change, or give another run.dir"
                )
        self.config.run.dir = str(self.directory)  # for the message
        refuse_changes(begun["begun"]["config"], self.config)

    def _next_round(self) -> list[FrozenTrial]:
        """Return trials that have yet to run: first those that were interrupted, then new ones.

        An interrupted trial resumes in its directory. One that ended while nobody waited for it is told first.
        """
        trials = []
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            if trial.params.keys() != self.space.keys():  # killed within the question
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif (outcome := self._outcome(trial.number)) is not None:
                self.study.tell(trial.number, outcome[1], outcome[0])
            else:
                trials.append(trial)
        trials = trials[: self.at_once]
        while len(trials) < self.at_once and len(self.study.trials) < self.trials:
            trials.append(ask(self.study, self.space, self.at_once > 1))
        return trials

    def _launch(self, trials: list[FrozenTrial]) -> None:
        """Run trials, and tell Optuna what they came to."""
        short, jobs = short_names(list(self.space)), {}
        for number, params in ((trial.number, trial.params) for trial in trials):
            values = space.values(self.space, params)
            name = " ".join(f"{short[key]}={value}" for key, value in values.items())
            print_line(f"\ntrial {number} ({number + 1} of {self.trials}): {name}")
            job = self._job(number, values, name)
            try:
                self._composed([job])
                jobs[number] = job
            except UserError as error:  # what no end of a range shows, as two values that do not go together
                print(f"error: {one_line(error)}", file=sys.stderr)
                self.codes.add(error.exit_code)
                self.study.tell(number, state=TrialState.FAIL)
        if jobs:
            self._wait_for(jobs)
        for number in jobs:
            state, value = self._outcome(number) or (TrialState.FAIL, None)
            self.study.tell(number, value, state)

    def _wait_for(self, jobs: dict[int, list[str]]) -> None:
        try:
            self.launcher.launch(list(jobs.values()), initial_job_idx=min(jobs))
        except SystemExit as end:
            if not isinstance(end.code, int) or end.code in STOPPED:
                raise
            self.codes.add(end.code)

    def _job(self, number: int, values: dict[str, Any], name: str) -> list[str]:
        """Return the arguments of a trial's run, which has a directory below the search's, and a name."""
        run = self.config.run
        own = {
            "dir": str(self.directory / str(number)),
            "name": masked(f"{run.name} {name}" if run.name else name),
            "group": run.group or self.directory.name,
        }
        placed = [f"run.{key}={quoted(value)}" for key, value in own.items()]
        return end_with_steps([*self.settings, *space.arguments(values), f"search.trial={number}", *placed])

    def _outcome(self, number: int) -> tuple[TrialState, float | None] | None:
        """Return how a trial has ended, and its loss on the whole of valid; None where it has not, or has failed."""
        directory = self.directory / str(number)
        if is_finished(directory, last_step(directory), self.config.train.total_steps):
            return TrialState.COMPLETE, run_record.read(directory).score("valid")
        return (TrialState.PRUNED, None) if pruned(directory) else None
