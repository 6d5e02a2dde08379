"""Write the numbers of a run: to `metrics.jsonl` beside it, and to the service that `tracking.name` names."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from adaptive_span.config.registry import TRACKERS
from adaptive_span.config.schema import Config
from adaptive_span.storage import stored, strict_json
from adaptive_span.storage.writing import atomic_write, explain_disk_errors

METRICS = "metrics.jsonl"
SCORES = "evaluation.json"  # of the whole splits; a run that has them and all its steps is finished
SPANS = "spans"  # key of a line: effective span of every head, in tokens, layer by layer
Metrics = dict[str, float]
Spans = list[list[float]]  # (N, H) effective, in tokens


class Service:
    """Keep no curves, as `tracking=none` asks. The base of what does.

    One lives in the main process of a training, from its start or resume to its end.

    Args:
        directory: The run's.
        config: The run's, as it was checked.
        run_id: The id under which an earlier part of the run was tracked; None at its beginning.
    """

    run_id: str | None = None
    """Id under which the service finds the run again. Checkpoints hold it."""
    place: str | None = None
    """Where to look at the run: an address, or a folder."""

    def __init__(self, directory: Path, config: Config, run_id: str | None):
        pass

    def log(self, step: int, metrics: Metrics, spans: Spans) -> None:
        """Take the numbers after `step` updates, by name, and the effective span of every head in tokens, (N, H)."""

    def finish(self, exit_code: int) -> None:
        """Take the end of the training: 0 where it has all its steps."""

    @classmethod
    def beside_job(cls) -> AbstractContextManager[None]:
        """Return what must surround a SLURM job on its first node, in the process that starts the training."""
        return nullcontext()


def register_tracker(name: str) -> Callable[[type[Service]], type[Service]]:
    """Return a decorator that makes a subclass of `Service` the tracker `tracking.name=NAME`."""
    return TRACKERS.register(name)


class Tracker:
    """The one writer of a run's numbers, in the main process only.

    A run that resumes at step s drops the lines after s: they are written again, and are the same.
    """

    def __init__(self, directory: Path, config: Config, step: int, run_id: str | None):
        self.path = directory / METRICS
        with explain_disk_errors(self.path):
            self.path.touch()
        self._forget_after(step)
        self.service: Service = TRACKERS[config.tracking.name](directory, config, run_id)

    @property
    def run_id(self) -> str | None:
        """Id of the run in its service, if it has one."""
        return self.service.run_id

    @property
    def place(self) -> str | None:
        """Where to look at the run: an address, or the folder of an offline run."""
        return self.service.place

    def log(self, step: int, metrics: Metrics, spans: Spans) -> None:
        """Write one line.

        Args:
            step: Updates so far.
            metrics: Name → number.
            spans: Effective span of every head, in tokens, layer by layer.
        """
        # r+, since a file that is missing is not made anew.
        with explain_disk_errors(self.path), open(self.path, "r+", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            rounded = [[round(span, 1) for span in heads] for heads in spans]
            file.write(strict_json.dumps({"step": step, **metrics, SPANS: rounded}) + "\n")
        self.service.log(step, metrics, spans)

    def finish(self, exit_code: int = 0) -> None:
        """Close the run in its service."""
        self.service.finish(exit_code)

    def _forget_after(self, step: int) -> None:
        kept = "".join(strict_json.dumps(line) + "\n" for line in logged(self.path) if line["step"] <= step)
        if kept.encode() != self.path.read_bytes():
            with atomic_write(self.path) as temporary:
                temporary.write_text(kept, encoding="utf-8")


def logged(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`: a step, numbers measured there, and `spans` unless it is old.

    Raises:
        UserError: A line, not the last, is damaged.
    """
    lines = list(stored.read_lines(path))
    for number, line in enumerate(lines, 1):
        stored.lookup(line, "step", int, f"line {number} of {path}")
        for key in line:
            stored.lookup(line, key, Spans if key == SPANS else float, f"line {number} of {path}")
    return lines
