"""Keep the curves of a run in Weights & Biases, online or in the run's directory."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError, first_line
from adaptive_span.reporting.tracking import Metrics, Service, Spans
from adaptive_span.terminal.plain_text import masked
from adaptive_span.terminal.printing import print_line

if TYPE_CHECKING:
    import wandb


class WandbService(Service):
    """One run of Weights & Biases, however often the training is resumed."""

    def __init__(self, directory: Path, config: Config, run_id: str | None):
        self.run = _start(directory, config, run_id)
        self.run_id = self.run.id
        self.place = str(Path(self.run.dir).parent) if self.run.offline else self.run.url

    def log(self, step: int, metrics: Metrics, spans: Spans) -> None:
        heads = {
            f"span/layer_{layer:02d}/head_{head}": span
            for layer, row in enumerate(spans)
            for head, span in enumerate(row)
        }
        self.run.log({"step": step, **metrics, **heads}, step=step)

    def finish(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)

    @classmethod
    def beside_job(cls) -> AbstractContextManager[None]:
        return _detached()


def _has_secret(arguments: list[str]) -> bool:
    """Return whether a command line must not be recorded, which wandb would do together with the machine and commit."""
    return any(masked(argument) != argument for argument in arguments)


def _start(directory: Path, config: Config, run_id: str | None) -> "wandb.Run":
    import wandb

    mode = config.tracking.mode
    if mode == "auto":
        try:
            mode = "online" if wandb.login(prompt=False) else "offline"
        except wandb.Error as error:  # for example: logged in, but without internet
            reason = first_line(error)
            print_line(f"warning: Weights & Biases cannot be reached, and the run is kept offline ({reason})")
            mode = "offline"
    try:
        run = wandb.init(
            project=config.tracking.project,
            entity=config.tracking.entity,
            group=config.tracking.group,
            tags=config.tracking.tags or None,
            name=directory.name,
            dir=str(directory),
            id=run_id,
            resume="allow" if run_id else None,
            mode=mode,  # type: ignore[arg-type]
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
