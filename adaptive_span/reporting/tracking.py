"""Write the numbers of a run: to `metrics.jsonl` beside it, and to Weights & Biases."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError, first_line
from adaptive_span.storage import stored, strict_json
from adaptive_span.storage.writing import atomic_write, explain_disk_errors
from adaptive_span.terminal.plain_text import masked
from adaptive_span.terminal.printing import print_line

if TYPE_CHECKING:
    import wandb

METRICS = "metrics.jsonl"
SCORES = "evaluation.json"  # of the whole splits; a run that has them and all its steps is finished
Metrics = dict[str, float]


class Tracker:
    """The one writer of a run's numbers, in the main process only.

    A run that resumes at step s drops the lines after s: they are written again, and are the same.
    """

    def __init__(self, directory: Path, config: Config, step: int, run_id: str | None):
        self.path = directory / METRICS
        with explain_disk_errors(self.path):
            self.path.touch()
        self._forget_after(step)
        self.wandb: wandb.Run | None = None
        if config.tracking.name == "wandb":
            self.wandb = _start_wandb(directory, config, run_id)

    @property
    def run_id(self) -> str | None:
        """Id of the run in Weights & Biases, if it is tracked there."""
        return self.wandb.id if self.wandb else None

    @property
    def place(self) -> str | None:
        """Where to look at the run: an address, or the folder of an offline run."""
        if self.wandb is None:
            return None
        return str(Path(self.wandb.dir).parent) if self.wandb.offline else self.wandb.url

    def log(self, step: int, metrics: Metrics, spans: list[list[float]]) -> None:
        """Write one line.

        Args:
            step: Updates so far.
            metrics: Name → number.
            spans: Effective span of every head, in tokens, layer by layer.
        """
        # r+, since a file that is missing is not made anew.
        with explain_disk_errors(self.path), open(self.path, "r+", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            file.write(strict_json.dumps({"step": step, **metrics}) + "\n")
        if self.wandb:
            heads = {
                f"span/layer_{layer:02d}/head_{head}": span
                for layer, row in enumerate(spans)
                for head, span in enumerate(row)
            }
            self.wandb.log({"step": step, **metrics, **heads}, step=step)

    def finish(self, exit_code: int = 0) -> None:
        """Close the run in Weights & Biases."""
        if self.wandb:
            self.wandb.finish(exit_code=exit_code)

    def _forget_after(self, step: int) -> None:
        kept = "".join(strict_json.dumps(line) + "\n" for line in logged(self.path) if line["step"] <= step)
        if kept.encode() != self.path.read_bytes():
            with atomic_write(self.path) as temporary:
                temporary.write_text(kept, encoding="utf-8")


def logged(path: Path) -> list[Metrics]:
    """Return the lines of a `metrics.jsonl`, each a step and what was measured there."""
    lines = list(stored.read_lines(path))
    for number, line in enumerate(lines, 1):
        stored.lookup(line, "step", int, f"line {number} of {path}")
        for key in line:
            stored.lookup(line, key, float, f"line {number} of {path}")
    return lines


def _has_secret(arguments: list[str]) -> bool:
    """Return whether a command line must not be recorded, which wandb would do together with the machine and commit."""
    return any(masked(argument) != argument for argument in arguments)


def _start_wandb(directory: Path, config: Config, run_id: str | None) -> "wandb.Run":
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
