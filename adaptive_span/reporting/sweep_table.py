"""Tabulate a sweep: what its runs differ in, and what came of each."""

import csv
import math
import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.table import Table

from adaptive_span.config.overrides import PATHS
from adaptive_span.errors import UserError
from adaptive_span.reporting import run_record, units
from adaptive_span.reporting.progress import clock
from adaptive_span.reporting.run_directory import has_begun, refuse_links
from adaptive_span.reporting.run_record import RunRecord
from adaptive_span.storage.writing import atomic_write
from adaptive_span.terminal.printing import console, print_line, print_table

Row = dict[str, Any]
Column = tuple[str, list[str]]  # heading and cells
SPLITS = ("valid", "test")
RESULTS: dict[str, Callable[[float], str]] = {  # columns of the file, and how their numbers are shown
    "valid": "{:.4f}".format,
    "test": "{:.4f}".format,
    "span/mean": "{:.1f}".format,
    "flops_per_token": lambda count: f"{count / 1e6:,.{1 if count > 1e7 else 2}f}M",
    "seconds": clock,
}
HEADINGS = {"span/mean": "span\nmean", "flops_per_token": "flops\n/token", "seconds": "time"}
GAP = 2  # characters between columns


def summarize(directories: Sequence[Path], sweep_directory: Path) -> None:
    """Print the table of several runs, the best first, and write all that they differ in to `sweep.csv`.

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
    varied = list(run_record.varied_settings(records))
    rows = [_row(record) for record in records]
    rows.sort(key=lambda row: (row["pruned"] is not None, math.inf if row["valid"] is None else row["valid"]))
    unit = " or ".join(sorted({record.unit for record in records}))
    path = sweep_directory / "sweep.csv"
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        results = [f"{key}/{unit}" if key in SPLITS else key for key in RESULTS]
        out.writerow(["run", "step", *varied, *results, "reason"])
        for row in rows:
            settings = [row["settings"].get(key) for key in varied]
            out.writerow(
                [row["run"], row["step"], *settings, *(row[key] for key in RESULTS), row["reason"] or row["pruned"]]
            )
    names = without_common_start([str(row["run"].relative_to(sweep_directory)) for row in rows])
    shown = " or ".join(sorted({units.label(record.unit) for record in records}))
    table, left_out = _table(rows, names, varied, shown)
    print_table(table)
    for name, row in zip(names, rows, strict=True):
        if row["reason"]:
            print_line(f"\n{name} failed: {row['reason']}")
    named = ", ".join(left_out[:2]) + (", …" if len(left_out) > 2 else "")
    more = f", with {len(left_out)} more that differ ({named})" if left_out else ""
    print_line(f"\nalso in {path}{more}")


def _row(record: RunRecord) -> Row:
    """Return one run: its scores if it has ended, else the last ones on the validation part; None where it has none."""
    unit = record.unit
    row: Row = {"run": record.directory, "settings": record.settings, "step": record.step, "reason": record.failure}
    row["pruned"] = record.pruned
    row |= {key: record.last(key) for key in ("span/mean", "flops_per_token")}
    row |= {"valid": record.last(f"valid/{unit}"), "test": None, "seconds": record.seconds()}
    return row | {split: record.exact[split][unit] for split in SPLITS if split in record.exact}


def _table(rows: list[Row], names: list[str], varied: list[str], unit: str) -> tuple[Table, list[str]]:
    """Return the table, no wider than the terminal if it can be, and the settings that found no room in it."""
    results = [
        (
            HEADINGS.get(key, f"{key}\n{unit}"),
            ["–" if row[key] is None else readable(row[key]) for row in rows],
        )
        for key, readable in RESULTS.items()
    ]
    if any(row["pruned"] for row in rows):
        results.append(("", ["pruned" if row["pruned"] else "" for row in rows]))
    if len({row["step"] for row in rows}) > 1:
        results.insert(0, ("step", [str(row["step"]) for row in rows]))
    keys = _worth_showing(rows, varied)
    while True:
        columns = [("run", names), *_settings(rows, keys), *results]
        width = sum(map(_width, columns)) + GAP * (len(columns) - 1)
        if width <= console.width or not keys:
            break
        keys.pop()
    table = Table(title=f"{len(rows)} runs, the best on valid first", title_justify="left", box=None, pad_edge=False)
    for heading, _ in columns:
        justify: Any = "left" if heading == "run" else "right"
        table.add_column(heading, justify=justify, vertical="bottom", overflow="fold")
    for cells in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*cells)
    return table, [key for key in varied if key not in keys]


def _worth_showing(rows: list[Row], varied: list[str]) -> list[str]:
    """Return the settings in which runs differ, without those that go with a name.

    Sizes go with the name of the model, and addresses with that of the data.
    """
    names = [key for key in varied if key.endswith(".name")]
    by_names: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        by_names.setdefault(tuple(str(row["settings"].get(key)) for key in names), []).append(row)
    apart = [
        key
        for key in varied
        if any(len({str(row["settings"].get(key)) for row in alike}) > 1 for alike in by_names.values())
    ]
    return [*names, *apart]


def _settings(rows: list[Row], keys: list[str]) -> list[Column]:
    """Return a column per setting. A key loses its group where it is clear without, and is broken to fit its values."""
    lasts = [key.removesuffix(".name").rpartition(".")[2] for key in keys]
    columns = []
    for key, last in zip(keys, lasts, strict=True):
        heading = last if lasts.count(last) == 1 else key
        cells = [str(row["settings"].get(key)) for row in rows]
        cells = without_common_start(cells) if key in PATHS else cells
        columns.append((heading if len(heading) <= max(map(len, cells)) else heading.replace("_", "\n"), cells))
    return columns


def without_common_start(names: list[str]) -> list[str]:
    """Return paths without the folders and words, parted by `-`, that all of them begin with."""
    if len(set(names)) == 1:
        return names
    words = [re.split(r"(?<=[/-])", name) for name in names]
    same = sum(
        1 for _ in takewhile(lambda each: len(set(each)) == 1, zip(*(name[:-1] for name in words), strict=False))
    )
    return ["".join(name[same:]) for name in words]


def _width(column: Column) -> int:
    heading, cells = column
    return max(len(line) for line in (*heading.split("\n"), *cells))
