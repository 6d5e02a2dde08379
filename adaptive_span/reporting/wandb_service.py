"""Keep the curves of a run in Weights & Biases, online or in the run's directory."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError, first_line
from adaptive_span.reporting import units
from adaptive_span.reporting.span_image import span_image
from adaptive_span.reporting.tracked_names import HEAT_MAP, final_numbers, head_curves, is_validation
from adaptive_span.reporting.tracking import METRICS, SCORES, Metrics, Service, Spans, logged, run_name
from adaptive_span.terminal.plain_text import masked
from adaptive_span.terminal.printing import print_line

if TYPE_CHECKING:
    import wandb

# Of each curve the summary keeps the best value, so that tables of runs can be sorted by it.
BEST = {
    **dict.fromkeys(
        [f"{split}/{unit}" for split in ("train", "valid", "valid_average") for unit in units.LOSSES], "min"
    ),
    **dict.fromkeys(("ms_per_step", "peak_memory_mib"), "min"),
    **dict.fromkeys(("tokens_per_second", "mfu"), "max"),
}


class WandbService(Service):
    """One run of Weights & Biases, however often the training is resumed."""

    def __init__(self, directory: Path, config: Config, run_id: str | None):
        import wandb  # slow, so only where it is used

        self.wandb = wandb
        self.directory, self.config = directory, config
        self.run = _start(directory, config, run_id)
        self.run_id = self.run.id
        self.place = str(Path(self.run.dir).parent.absolute()) if self.run.offline else self.run.url
        if self.run.offline:
            # All parts of a run that was resumed: wandb uploads them in their order, and skips what it has uploaded.
            folder = shlex.quote(str(directory.absolute() / "wandb"))
            self.upload = f"wandb sync {folder}/offline-run-*-{self.run_id}"

    def log(self, step: int, metrics: Metrics, spans: Spans) -> None:
        values: dict[str, Any] = {**metrics, **head_curves(spans)}
        if is_validation(metrics):
            image = span_image(spans, self.config.model, run_name(self.config, self.directory), step)
            values[HEAT_MAP] = self.wandb.Image(image)
        # A row is written at once, not with the next one: the summary's last word is that of `result`.
        self.run.log({"step": step, **values}, step=step, commit=True)

    def result(self, evaluation: dict[str, Any]) -> None:
        lines = logged(self.directory / METRICS)
        for key, kind in BEST.items():
            # Of the whole run: wandb itself forgets the values from before a resume.
            if values := [line[key] for line in lines if key in line]:
                self.run.summary[key] = {kind: min(values) if kind == "min" else max(values)}
        columns: list[str | int] = ["layer", *(f"head {head}" for head in range(self.config.model.num_heads))]
        rows = [[layer, *row] for layer, row in enumerate(evaluation["spans"])]
        table = self.wandb.Table(columns=columns, data=rows)
        self.run.summary.update({**final_numbers(evaluation), "spans": table})
        # A copy among wandb's own files: an offline folder can be taken elsewhere, and uploaded from there.
        shutil.copy(self.directory / SCORES, self.run.dir)
        self.run.save(str(Path(self.run.dir, SCORES)), base_path=self.run.dir, policy="now")

    def finish(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)

    @classmethod
    def beside_job(cls) -> AbstractContextManager[None]:
        return _detached()


def _has_secret(arguments: list[str]) -> bool:
    """Return whether a command line must not be recorded, which wandb would do together with the machine and commit."""
    return any(masked(argument) != argument for argument in arguments)


def _mode(asked: str) -> str:
    """Return online or offline where it is left open, and warn if that is not what somebody may expect."""
    import wandb

    if asked != "auto":
        return asked
    try:
        if wandb.login(prompt=False):
            return "online"
        print_line(
            "warning: nobody is logged in to Weights & Biases, and the run is kept offline; `wandb login` logs in, "
            "tracking=offline or tracking=none asks for it without this warning"
        )
    except wandb.Error as error:  # for example: logged in, but without internet
        reason = first_line(error)
        print_line(f"warning: Weights & Biases cannot be reached, and the run is kept offline ({reason})")
    return "offline"


def _start(directory: Path, config: Config, run_id: str | None) -> "wandb.Run":
    import wandb

    try:
        run = wandb.init(
            project=config.tracking.project,
            entity=config.tracking.entity,
            group=config.tracking.group or config.run.group,
            tags=config.tracking.tags or None,
            name=run_name(config, directory)[:128],  # wandb takes no longer ones
            dir=str(directory),
            id=run_id,
            resume="allow" if run_id else None,
            mode=_mode(config.tracking.mode),  # type: ignore[arg-type]
            config=config.as_dict(),
            # sys.argv is what wandb itself would record.
            settings=wandb.Settings(silent=True, console="off", x_disable_meta=_has_secret(sys.argv)),
        )
    except wandb.Error as error:
        raise UserError(
            f"tracking.mode={config.tracking.mode}, but Weights & Biases has refused the run ({first_line(error)}); "
            f"take tracking=offline and `wandb sync` it later, or tracking=none"
        ) from error
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    for key, kind in BEST.items():
        run.define_metric(key, step_metric="step", summary=kind)
    return run


@contextmanager
def _detached() -> Iterator[None]:
    """Keep wandb's own process from the SIGTERM of a job, so that it can still write what it was sent.

    Where no cgroups confine a job, everything that descends from it gets that signal; a detached process does not.
    """
    command = [sys.executable, "-m", "wandb", "beta", "core"]
    os.environ.pop("WANDB_SERVICE", None)  # of the shell that the job was submitted from
    started = subprocess.run([*command, "start", "--idle-timeout=2h"], capture_output=True, text=True)
    if started.returncode:  # a version that can't: wandb starts its process as ever
        yield
        return
    os.environ["WANDB_SERVICE"] = started.stdout.strip()
    try:
        yield
    finally:
        subprocess.run([*command, "stop"], capture_output=True)
