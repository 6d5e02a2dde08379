"""Tabulate a sweep: what its runs differ in, and what came of each."""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from adaptive_span.errors import UserError
from adaptive_span.reporting import run_record
from adaptive_span.reporting.run_directory import has_begun, refuse_links
from adaptive_span.reporting.run_record import RunRecord
from adaptive_span.storage.writing import atomic_write
from adaptive_span.terminal.printing import print_line, print_table

Row = dict[str, Any]
SPLITS = ("valid", "test")
RESULTS: dict[str, Callable[[float], str]] = {  # columns, and how their numbers are shown
    "valid": "{:.4f}".format,
    "test": "{:.4f}".format,
    "span/mean": "{:.1f}".format,
    "flops_per_token": lambda count: f"{count / 1e6:.1f}M",
    "seconds": "{:.0f}".format,
}


def summarize(directories: Sequence[Path], sweep_directory: Path) -> None:
    """Print the table of several runs, the best first, and write it to `sweep.csv`.

    Args:
        directories: Of the runs. Those that have not started are left out.
        sweep_directory: Where to write.

    Raises:
        UserError: None has started.
    """
    refuse_links(sweep_directory)
    records = [run_record.read(directory) for directory in directories if has_begun(directory)]
    if not records:
        raise UserError(f"no run below {sweep_directory} has begun")
    names = list(run_record.varied_settings(records))
    rows = [_row(record) for record in records]
    rows.sort(key=lambda row: math.inf if row["valid"] is None else row["valid"])
    unit = records[0].unit
    table = Table(title=f"{len(rows)} runs, the best on valid first", title_justify="left", box=None, pad_edge=False)
    for heading in ("run", *names, unit, *list(RESULTS)[1:]):
        table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold")
    path = sweep_directory / "sweep.csv"
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        results = [f"{key}/{unit}" if key in SPLITS else key for key in RESULTS]
        out.writerow(["run", "step", *names, *results, "reason"])
        for row in rows:
            settings = [row["settings"].get(name) for name in names]
            out.writerow([row["run"], row["step"], *settings, *(row[key] for key in RESULTS), row["reason"]])
            figures = ["–" if row[key] is None else readable(row[key]) for key, readable in RESULTS.items()]
            table.add_row(str(row["run"].relative_to(sweep_directory)), *map(str, settings), *figures)
    print_table(table)
    for row in rows:
        if row["reason"]:
            print_line(f"\n{row['run'].relative_to(sweep_directory)} failed: {row['reason']}")
    print_line(f"\nalso in {path}")


def _row(record: RunRecord) -> Row:
    """Return one run: its scores if it has ended, else the last ones on the validation part; None where it has none."""
    unit = record.unit
    row: Row = {"run": record.directory, "settings": record.settings, "step": record.step, "reason": record.failure}
    row |= {key: record.last(key) for key in ("span/mean", "flops_per_token")}
    row |= {"valid": record.last(f"valid/{unit}"), "test": None, "seconds": record.seconds()}
    return row | {split: record.exact[split][unit] for split in SPLITS if split in record.exact}
