"""Where the numbers of a run go: `metrics.jsonl` beside it, and Weights & Biases."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_span.config import Config

if TYPE_CHECKING:
    import wandb

Metrics = dict[str, float]


class Tracker:
    """The one writer of a run's numbers. It lives in the main process only.

    A run that goes on from step s forgets the lines after s: they will be written again, and be the same.
    """

    def __init__(self, directory: Path, config: Config, step: int, run_id: str | None):
        self.path = directory / "metrics.jsonl"
        self._forget_after(step)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in finish)
        self.wandb: wandb.Run | None = None
        if config.tracking.name == "wandb":
            self.wandb = _start_wandb(directory, config, run_id)

    @property
    def run_id(self) -> str | None:
        return self.wandb.id if self.wandb else None

    @property
    def place(self) -> str | None:
        """Where the run can be looked at: an address, or the folder of an offline run."""
        if self.wandb is None:
            return None
        return str(Path(self.wandb.dir).parent) if self.wandb.offline else self.wandb.url

    def log(self, step: int, metrics: Metrics, spans: list[list[float]]) -> None:
        """`spans`: the effective span of every head, in tokens, layer by layer."""
        self.file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.file.flush()
        if self.wandb:
            heads = {
                f"span/layer_{layer:02d}/head_{head}": span
                for layer, row in enumerate(spans)
                for head, span in enumerate(row)
            }
            self.wandb.log({"step": step, **metrics, **heads}, step=step)

    def finish(self, exit_code: int = 0) -> None:
        self.file.close()
        if self.wandb:
            self.wandb.finish(exit_code=exit_code)

    def _forget_after(self, step: int) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if len(kept) < len(lines):
            temporary = self.path.with_name(self.path.name + ".writing")
            temporary.write_text("".join(kept), encoding="utf-8")
            os.replace(temporary, self.path)


def _start_wandb(directory: Path, config: Config, run_id: str | None) -> "wandb.Run":
    import wandb

    mode = config.tracking.mode
    if mode == "auto":
        mode = "online" if wandb.login(prompt=False) else "offline"
    run = wandb.init(
        project=config.tracking.project,
        entity=config.tracking.entity,
        group=config.tracking.group,
        tags=config.tracking.tags or None,
        name=directory.name,
        dir=directory,
        id=run_id,
        resume="allow" if run_id else None,
        mode=mode,  # type: ignore[arg-type]
        config=config.as_dict(),
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
