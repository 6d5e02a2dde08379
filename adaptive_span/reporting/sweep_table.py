"""Tabulate a sweep: what its runs differ in, and what came of each."""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from adaptive_span.config.checks import MISSING
from adaptive_span.config.data_sets import completed
from adaptive_span.config.identity import flatten
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.reporting import scores
from adaptive_span.reporting.run_directory import CONFIG, FAILURE, has_begun, reason, refuse_links
from adaptive_span.reporting.tracking import METRICS, SCORES, logged
from adaptive_span.storage.stored import from_dict, lookup, read_yaml
from adaptive_span.storage.writing import atomic_write
from adaptive_span.terminal.printing import print_line, print_table

Row = dict[str, Any]
SPLITS = ("valid", "test")
MEASURED = ("tokens_per_second", "span/mean", "flops_per_token")
RESULTS: dict[str, Callable[[float], str]] = {  # columns, and how their numbers are shown
    "valid": "{:.4f}".format,
    "test": "{:.4f}".format,
    "span/mean": "{:.1f}".format,
    "flops_per_token": lambda count: f"{count / 1e6:.1f}M",
    "seconds": "{:.0f}".format,
}


def runs_below(directory: Path) -> list[Path]:
    """Return the directories of all runs below a folder that have begun, or failed."""
    return sorted({path.parent for name in (METRICS, FAILURE) for path in directory.glob(f"**/{name}")})


def summarize(directories: Sequence[Path], sweep_directory: Path) -> None:
    """Print the table of several runs, the best first, and write it to `sweep.csv`.

    Args:
        directories: Of the runs. Those that have not started are left out.
        sweep_directory: Where to write.

    Raises:
        UserError: None has started.
    """
    refuse_links(sweep_directory)
    rows = [_row(directory) for directory in directories if has_begun(directory)]
    if not rows:
        raise UserError(f"no run below {sweep_directory} has begun")
    rows.sort(key=lambda row: math.inf if row["valid"] is None else row["valid"])
    varied = [key for key in rows[0]["config"] if len({str(row["config"].get(key)) for row in rows}) > 1]
    names = [key for key in varied if not key.startswith("run.")]
    unit = rows[0]["unit"]
    table = Table(title=f"{len(rows)} runs, the best on valid first", title_justify="left", box=None, pad_edge=False)
    for heading in ("run", *names, unit, *list(RESULTS)[1:]):
        table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold")
    path = sweep_directory / "sweep.csv"
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        results = [f"{key}/{unit}" if key in SPLITS else key for key in RESULTS]
        out.writerow(["run", "step", *names, *results, "reason"])
        for row in rows:
            settings = [row["config"].get(name) for name in names]
            out.writerow([row["run"], row["step"], *settings, *(row[key] for key in RESULTS), row["reason"]])
            figures = ["–" if row[key] is None else readable(row[key]) for key, readable in RESULTS.items()]
            table.add_row(str(row["run"].relative_to(sweep_directory)), *map(str, settings), *figures)
    print_table(table)
    for row in rows:
        if row["reason"]:
            print_line(f"\n{row['run'].relative_to(sweep_directory)} failed: {row['reason']}")
    print_line(f"\nalso in {path}")


def _row(directory: Path) -> Row:
    """Return one run: its scores if it has ended, else the last ones on the validation part; None where it has none."""
    config = from_dict(completed(read_yaml(directory / CONFIG)), Config, directory / CONFIG)
    values = flatten(config.as_dict())
    if MISSING in values.values():
        raise UserError(f"{directory / CONFIG} lacks a value for {next(k for k in values if values[k] == MISSING)}")
    unit = "ppl" if config.data.level == "word" else "bpc"
    row: Row = {"run": directory, "config": values, "unit": unit, "step": 0}
    row |= dict.fromkeys(RESULTS) | {"seconds": 0.0, "reason": reason(directory)}
    path = directory / METRICS
    for number, line in enumerate(logged(path) if path.exists() else [], 1):
        measured = {key: lookup(line, key, float, f"line {number} of {path}") for key in MEASURED}
        tokens = (line["step"] - row["step"]) * config.train.batch_size * config.model.block_size
        row["seconds"] += tokens / (measured.pop("tokens_per_second") or math.inf)
        row |= measured | {"step": line["step"], "valid": line.get(f"valid/{unit}", row["valid"])}
    return row | _scores(directory, unit)


def _scores(directory: Path, unit: str) -> dict[str, float]:
    """Return the exact scores of a run's splits on its own data."""
    exact, path = scores.exact_score(directory), directory / SCORES
    splits = lookup(exact, "splits", dict[str, dict[str, float]], path) if exact else {}
    return {split: lookup(splits[split], unit, float, path) for split in SPLITS if split in splits}
