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
TRACKER = "tracker.json"  # where its tracker shows the run
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
    """Where to look at the run: an address, or a folder. Known once it is made."""
    upload: str | None = None
    """Command that uploads the run from a folder, if it takes one."""

    def __init__(self, directory: Path, config: Config, run_id: str | None):
        pass

    def log(self, step: int, metrics: Metrics, spans: Spans) -> None:
        """Take the numbers after `step` updates, by name, and the effective span of every head in tokens, (N, H)."""

    def result(self, evaluation: dict[str, Any]) -> None:
        """Take the scores of the best weights, which `evaluation.json` holds by now; `finish` follows."""

    def finish(self, exit_code: int) -> None:
        """Take the end of the training: 0 where it has all its steps and its scores."""

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
        self.name = config.tracking.name
        if self.place:
            strict_json.write({"name": self.name, "place": self.place, "upload": self.upload}, directory / TRACKER)

    @property
    def run_id(self) -> str | None:
        """Id of the run in its service, if it has one."""
        return self.service.run_id

    @property
    def place(self) -> str | None:
        """Where to look at the run: an address, or the folder of an offline run."""
        return self.service.place

    @property
    def upload(self) -> str | None:
        """Command that uploads an offline run."""
        return self.service.upload

    @property
    def places(self) -> dict[str, str | None]:
        """Where to look at the run, by the tracker's name, and the command that uploads it: to be printed."""
        return {self.name: self.place, "upload": self.upload}

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

    def result(self, evaluation: dict[str, Any]) -> None:
        """Hand the final scores to the service.

        Args:
            evaluation: What `evaluation.json` holds.
        """
        self.service.result(evaluation)

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


def last_step_logged(directory: Path) -> int:
    """Return the last step in a run's `metrics.jsonl`, 0 where there is none."""
    lines = logged(directory / METRICS)
    return lines[-1]["step"] if lines else 0


def whereabouts(directory: Path) -> dict[str, str]:
    """Return where a run can be looked at, by the name of its tracker, and the command that uploads it if there is one.

    Raises:
        UserError: The file that says so is damaged.
    """
    path = directory / TRACKER
    if not path.exists():
        return {}
    kept = stored.read_json(path, dict)
    name, place = (stored.lookup(kept, key, str, path) for key in ("name", "place"))
    upload = stored.lookup(kept, "upload", str | None, path)
    return {name: place} | ({"upload": upload} if upload else {})


def run_name(config: Config, directory: Path) -> str:
    """Return what a run is called: in a sweep by what sets it apart, else as its directory."""
    return config.run.name or directory.name
