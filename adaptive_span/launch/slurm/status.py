"""Print how submitted jobs are doing, from their submission, SLURM's answers and the runs' own logs."""

import os
import shlex
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from rich.live import Live
from rich.table import Table

from adaptive_span.checkpoint.paths import last_step
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.errors import UserError
from adaptive_span.launch.slurm import cluster
from adaptive_span.reporting import units
from adaptive_span.reporting.console import readable
from adaptive_span.reporting.run_directory import failure, is_finished, pruned, reason
from adaptive_span.reporting.tracking import METRICS, logged
from adaptive_span.storage import strict_json
from adaptive_span.storage.stored import lookup, read_json
from adaptive_span.terminal.printing import console, print_line, print_places

UNITS = tuple(f"train/{unit}" for unit in units.NAMES)
ENDED = (*cluster.ENDED, "UNKNOWN")


@dataclass(frozen=True)
class SubmittedJob:
    """One training that is, or was, in the queue."""

    id: str
    directory: str
    folder: str  # of its script and logs
    total_steps: int

    @property
    def log(self) -> Path:
        """The output of all of its nodes and attempts."""
        return Path(self.folder, f"{self.id}_0_log.out")

    def outcome(self, state: str | None) -> str:
        """Return how the run is doing: SLURM's state, or once SLURM is done with it what its directory shows."""
        directory = Path(self.directory)
        if state and state not in ENDED:
            return state
        if is_finished(directory, last_step(directory), self.total_steps) or pruned(directory):
            return "COMPLETED"
        return state or ("FAILED" if failure(directory) else "UNKNOWN")

    def last_line(self) -> dict[str, float]:
        """Return the last line of the run's metrics."""
        path = Path(self.directory, METRICS)
        lines = logged(path) if path.exists() else []
        return lines[-1] if lines else {}


def write(directory: Path, jobs: list[SubmittedJob]) -> None:
    """Keep these jobs, each in the place of an earlier one of the same directory."""
    jobs = list({job.directory: job for job in (*read(directory), *jobs)}.values())
    strict_json.write([asdict(job) for job in jobs], directory / "slurm" / "jobs.json")


def read(directory: Path) -> list[SubmittedJob]:
    """Return the last job of a run, or of each run of a sweep; one run of a sweep can be asked for alone."""
    for place in (directory, directory.parent):
        path = place / "slurm" / "jobs.json"
        if path.is_file():
            jobs = [_job(job, path) for job in read_json(path, list)]
            return jobs if place == directory else [job for job in jobs if Path(job.directory) == directory]
    return []


def _job(values: Any, path: Path) -> SubmittedJob:
    """Return one of the jobs that were written, perhaps by an older version, which knew more of them."""
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it lists something that is no job; submit again")
    hints = get_type_hints(SubmittedJob)
    names = [field.name for field in fields(SubmittedJob)]
    return SubmittedJob(**{name: lookup(values, name, hints[name], path) for name in names})


def refuse_second(directory: Path) -> None:
    """Refuse a second job for a directory.

    Raises:
        UserError: One is in the queue already.
    """
    jobs = read(directory)
    states = states_of(jobs) if jobs else {}
    for job in jobs:
        if states[job.id] not in ENDED:
            raise UserError(
                f"run.dir={job.directory} has job {job.id} in the queue already ({states[job.id]}); wait for it, end "
                f"it with scancel {job.id}, or give another run.dir"
            )


def announce(directory: Path, jobs: list[SubmittedJob], hardware: HardwareConfig) -> None:
    """Print what was submitted, where it is, and the commands to follow and stop it."""
    what = f"job {jobs[0].id}" if len(jobs) == 1 else f"jobs {jobs[0].id} … {jobs[-1].id}"
    each = f"{hardware.nodes} node(s), each with {hardware.gpus} GPU(s) and {hardware.cpus} core(s)"
    print_line(f"submitted {what}: {each}, for {hardware.minutes} minutes at a time")
    for job in jobs:
        print_places({"job": job.id, "run": job.directory, "log": job.log})
    print_places(
        {
            "code": directory / "code",
            "follow": shlex.join(["tail", "-F", str(jobs[0].log)]),
            "status": shlex.join(["adaptive-span", "status", str(directory)]),
            "table": shlex.join(["adaptive-span", "sweep", str(directory)]) if len(jobs) > 1 else None,
            "stop": f"scancel {jobs[0].id.split('_')[0]}",
        }
    )


def states_of(jobs: list[SubmittedJob], patience: float = cluster.PATIENCE) -> dict[str, str]:
    """Return the state of each job, also of one that SLURM has forgotten."""
    known = cluster.states((job.id for job in jobs), patience)
    return {job.id: job.outcome(known.get(job.id)) for job in jobs}


def table(jobs: list[SubmittedJob], states: dict[str, str]) -> Table:
    """Return a table of the jobs, their states, steps and scores."""
    jobs_table = Table(box=None, pad_edge=False)
    jobs_table.add_column("job")
    jobs_table.add_column("state")
    jobs_table.add_column("step", justify="right")
    lines = [job.last_line() for job in jobs]
    unit = next((unit for unit in UNITS for line in lines if unit in line), UNITS[0])
    jobs_table.add_column(unit.removeprefix("train/"), justify="right")
    whole = None if console.is_terminal else max(len(job.directory) for job in jobs)  # a line that one can grep
    jobs_table.add_column("run", overflow="fold", min_width=whole)
    for job, line in zip(jobs, lines, strict=True):
        score = readable(line[unit], 3) if unit in line else ""
        jobs_table.add_row(job.id, states[job.id], f"{line.get('step', 0):.0f}/{job.total_steps}", score, job.directory)
    return jobs_table


def reasons(jobs: list[SubmittedJob], states: dict[str, str]) -> list[str]:
    """Return a line per job that ended without finishing its run: the run's own reason, or its log's last line."""
    ended = [(job, states[job.id]) for job in jobs if states[job.id] in ENDED and states[job.id] != "COMPLETED"]
    return [f"job {job.id} {state}: {reason(Path(job.directory)) or _last_line(job.log)}" for job, state in ended]


def _last_line(log: Path) -> str:
    """Return the last line of a log, which may be long; nothing where there is none."""
    if not log.is_file():
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def watch(directory: Path, runs: set[str], seconds: float = 2) -> bool:
    """Show a live table until the jobs of these runs have ended, and why some failed. Return whether none did."""
    jobs = [job for job in read(directory) if job.directory in runs]
    states, is_away = {job.id: "PENDING" for job in jobs}, False
    try:
        with Live(table(jobs, states), console=console, auto_refresh=False, transient=True) as live:
            while True:
                try:
                    states, is_away = states_of(jobs, patience=0), False
                except cluster.Away:  # for as long as it may be: the jobs run on without it
                    if not is_away:
                        print_line("waiting for SLURM's controller, which does not answer; the jobs keep running")
                    is_away = True
                live.update(table(jobs, states), refresh=True)
                if all(state in ENDED for state in states.values()):
                    break
                time.sleep(seconds)
    except KeyboardInterrupt:
        command = shlex.join(["adaptive-span", "status", str(directory)])
        print_line(f"the jobs keep running; {command} shows them again")
        raise SystemExit(130) from None
    console.print()
    console.print(table(jobs, states))
    failed = [job for job in jobs if states[job.id] != "COMPLETED"]
    for job in failed:
        print_line(f"\njob {job.id} ended as {states[job.id]}; its log is {job.log}")
        print_line(failure(Path(job.directory)) or _last_line(job.log))
    return not failed
