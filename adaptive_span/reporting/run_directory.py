"""Keep in a run's directory what others ask for: how far it is, and why it failed.

Nothing here imports torch, so that a table of many runs is printed at once, and a login node does not need it.
"""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from adaptive_span.checkpoint.paths import last_step
from adaptive_span.config.identity import changes
from adaptive_span.config.registry import decays
from adaptive_span.config.schema import Config
from adaptive_span.errors import ProcessLost, UserError
from adaptive_span.reporting import scores
from adaptive_span.reporting.tracking import METRICS, SCORES
from adaptive_span.storage.stored import read_yaml
from adaptive_span.storage.writing import atomic_write, discard_unfinished
from adaptive_span.terminal.plain_text import masked
from adaptive_span.terminal.printing import print_line

CONFIG = "config.yaml"
ENVIRONMENT = "environment.jsonl"  # with what it was trained, a line per start
TOKEN_LOSSES = "token_losses.json"  # of a short text, to colour it by
FAILURE = "failure.txt"  # one sentence, or the traceback of a bug; gone once the run is taken up again
PRUNED = "pruned.txt"  # when its search has ended it; gone once it is taken up again
LOCK = ".lock"


def refuse_links(directory: Path) -> None:
    """Refuse a link that leads out of a run's directory: what the run writes or deletes would be elsewhere.

    Raises:
        UserError: There is one.
    """
    for name in ("*", "checkpoints/*", "figures/*", "slurm/*"):
        for path in directory.glob(name):
            if path.is_symlink() and not path.resolve().is_relative_to(directory.resolve()):
                raise UserError(
                    f"{path} is a link that leads out of the run's directory, to {os.readlink(path)}; remove it, or "
                    f"make the run's directory itself the link"
                )


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Hold the directory of a run for one training at a time, and remove it again if nothing came of it.

    Raises:
        UserError: Another process holds it, or it cannot be written to.
    """
    refuse_links(directory)
    lock = FileLock(directory / LOCK)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        forget_failure(directory)
        discard_unfinished(directory)
    except Timeout:
        raise UserError(
            f"another process is training in run.dir={directory}; wait for it, or give another run.dir"
        ) from None
    except OSError as error:
        raise UserError(f"run.dir={directory} cannot be written to ({error.strerror}); give another run.dir") from None
    try:
        yield
    finally:
        lock.release()
        if directory.exists() and [path.name for path in directory.iterdir()] in ([LOCK], []):
            (directory / LOCK).unlink(missing_ok=True)
            directory.rmdir()


def is_finished(directory: Path, step: int, total_steps: int) -> bool:
    """Return whether a run that has reached `step` has all its steps and its scores."""
    return step >= total_steps and scores.exact_score(directory) is not None


def is_done(config: Config) -> bool:
    """Return whether a run's directory holds everything that the run should come to.

    Raises:
        UserError: It holds another run.
    """
    directory = Path(config.run.dir or "")
    step = last_step(directory)
    if step and (directory / CONFIG).is_file():
        refuse_changes(read_yaml(directory / CONFIG), config)
    return is_finished(directory, step, config.train.total_steps)


def refuse_changes(before: dict[str, Any], config: Config) -> None:
    """Refuse a configuration that makes another run than the one in the directory.

    Args:
        before: The configuration that the run started with.
        config: That of now.

    Raises:
        UserError: They differ in a key that matters.
    """
    if changed := changes(before, config):
        raise UserError(
            f"run.dir={config.run.dir} was begun with another configuration: {', '.join(changed)}; "
            f"take back the change, or give another run.dir"
        )


def report_finished(directory: Path, step: int, config: Config) -> None:
    """Print that a run is finished, and how to train it further."""
    further = "start a new run by train.init_from" if decays(config.train.schedule) else "raise train.steps"
    print_line(
        f"{directory} is finished after {step} steps; scores are in {SCORES} there. To train on, {further}; "
        f"to start afresh, delete it or take another run.dir or train.seed"
    )


def has_begun(directory: Path) -> bool:
    """Return whether there is something to report: numbers, or why there are none."""
    return (directory / METRICS).exists() or (directory / FAILURE).exists()


def write_config(config: Config, directory: Path) -> None:
    """Write the configuration of a run to its directory."""
    text = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
    with atomic_write(directory / CONFIG) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def failure_kept(config: Config, among_others: bool) -> Iterator[None]:
    """Write to a run's directory why its training fails.

    A run that was refused before it has a directory leaves none, unless it is one of several whose table shows it.

    Args:
        config: The run.
        among_others: Whether it is one of several.
    """
    directory = Path(config.run.dir or "")
    is_free = not in_use(directory)  # else the failure would be recorded for the other training
    try:
        yield
    except Exception as error:
        if is_free and (among_others or directory.is_dir()):
            # A full disk may be the very reason, which is on its way to the screen.
            with suppress(OSError, UserError):
                _write_failure(config, directory, error)
        raise


@contextmanager
def resumable(directory: Path) -> Iterator[None]:
    """Add to the message of a lost process from which step the run resumes."""
    try:
        yield
    except ProcessLost as lost:
        step = last_step(directory)
        saved = f"step {step} is saved, and the same command resumes it" if step else "the same command starts it again"
        raise ProcessLost(f"{lost}; {saved}", lost.exit_code) from None


def forget_failure(directory: Path) -> None:
    """Remove what a run's directory records of a failure, or of being pruned."""
    for name in (FAILURE, PRUNED):
        (directory / name).unlink(missing_ok=True)


def prune(directory: Path, step: int, total_steps: int) -> None:
    """Record that a search has ended a run early."""
    with atomic_write(directory / PRUNED) as temporary:
        temporary.write_text(f"pruned after step {step} of {total_steps}\n", encoding="utf-8")


def pruned(directory: Path) -> str | None:
    """Return when a search has ended a run early; None where it has not."""
    path = directory / PRUNED
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def failure(directory: Path) -> str | None:
    """Return what is recorded of a run's failure; None where there is none."""
    path = directory / FAILURE
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None


def reason(directory: Path) -> str | None:
    """Return the failure in one line: the sentence, or the last line of the traceback."""
    known = failure(directory)
    return known.split("\n")[-1].strip() if known else known


def _write_failure(config: Config, directory: Path, error: Exception) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / CONFIG).exists():
        write_config(config, directory)
    text = masked(str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)))
    with suppress(FileExistsError), open(directory / FAILURE, "x", encoding="utf-8") as file:
        file.write(text + "\n")


def in_use(directory: Path) -> bool:
    """Return whether another training has the directory, or it can't be written to."""
    if not (directory / LOCK).exists():
        return False
    try:
        with FileLock(directory / LOCK, timeout=0):
            return False
    except OSError:  # also a time-out
        return True
