"""Tabulate how runs of this machine are doing."""

from collections.abc import Sequence

from rich.table import Table

from adaptive_span.reporting.console import readable
from adaptive_span.reporting.run_directory import in_use, is_finished
from adaptive_span.reporting.run_record import RunRecord


def state(record: RunRecord) -> str:
    """Return how a run is doing: finished, failed, training, or stopped."""
    if is_finished(record.directory, record.step, record.config.train.total_steps):
        return "finished"
    if record.failure:
        return "failed"
    return "training" if in_use(record.directory) else "stopped"


def table(records: Sequence[RunRecord]) -> Table:
    """Return a table with a row per run: its state, step and last training loss."""
    names = any(record.config.run.name for record in records)
    runs_table = Table(box=None, pad_edge=False)
    for heading in ("state", "step", "train loss", *(["name"] if names else []), "run"):
        runs_table.add_column(
            heading, justify="right" if heading in ("step", "train loss") else "left", overflow="fold"
        )
    for record in records:
        loss = record.last(f"train/{record.unit}")
        figures = "" if loss is None else f"{readable(loss, 3)} {record.unit}"
        steps = f"{record.step}/{record.config.train.total_steps}"
        name = [record.config.run.name or ""] if names else []
        runs_table.add_row(state(record), steps, figures, *name, str(record.directory))
    return runs_table
