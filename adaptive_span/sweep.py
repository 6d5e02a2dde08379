"""The table of a sweep: what its runs differ in, and what came of each.

    python -m adaptive_span.sweep DIR        of the runs below DIR

A sweep on this machine ends with it by itself.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from adaptive_span.console import say, show
from adaptive_span.errors import UserError
from adaptive_span.identity import flatten
from adaptive_span.tracking import METRICS, SCORES, logged

Row = dict[str, Any]
RESULTS = ("valid", "test", "span/mean", "flops_per_token", "seconds")


def summarize(directories: Sequence[Path], home: Path) -> None:
    """The runs, the best first, in `sweep.csv` in `home` and on the screen."""
    rows = [_row(directory) for directory in directories if (directory / METRICS).exists()]
    if not rows:
        raise UserError(f"no run below {home} has begun")
    varied = [key for key in rows[0]["config"] if len({str(row["config"].get(key)) for row in rows}) > 1]
    names = [key for key in varied if not key.startswith("run.")]
    rows.sort(key=lambda row: row["valid"])
    table = Table(title=f"{len(rows)} runs, the best on valid first", title_justify="left", box=None, pad_edge=False)
    for heading in ("run", *names, rows[0]["unit"], *RESULTS[1:]):
        table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold")
    with open(home / "sweep.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["run", "step", *names, *(f"{split}/{rows[0]['unit']}" for split in RESULTS[:2]), *RESULTS[2:]])
        for row in rows:
            settings = [row["config"].get(name) for name in names]
            out.writerow([row["run"], row["step"], *settings, *(row[key] for key in RESULTS)])
            figures = [f"{row['valid']:.4f}", "–" if row["test"] is None else f"{row['test']:.4f}"]
            figures += [f"{row['span/mean']:.1f}", f"{row['flops_per_token'] / 1e6:.1f}M", f"{row['seconds']:.0f}"]
            table.add_row(str(row["run"].relative_to(home)), *map(str, settings), *figures)
    show(table)
    say(f"\nalso in {home / 'sweep.csv'}")


def _row(directory: Path) -> Row:
    """One run: its scores if it has ended, else the last ones on the validation part."""
    import yaml

    config = flatten(yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8")))
    unit = "ppl" if config["data.level"] == "word" else "bpc"
    row: Row = {"run": directory, "config": config, "unit": unit, "test": None, "seconds": 0.0, "step": 0}
    row |= {"valid": float("inf"), "span/mean": float("nan"), "flops_per_token": float("nan")}
    for line in logged(directory / METRICS):
        tokens = (line["step"] - row["step"]) * config["train.batch_size"] * config["model.block_size"]
        row["seconds"] += tokens / line["tokens_per_second"]
        row |= {"step": line["step"], "valid": line.get(f"valid/{unit}", row["valid"])}
        row |= {key: line[key] for key in ("span/mean", "flops_per_token")}
    if (directory / SCORES).exists():
        scores = json.loads((directory / SCORES).read_text())
        if scores["protocol"] == "exact":  # or the runs would not compare
            row |= {split: found[unit] for split, found in scores["splits"].items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    home = parser.parse_args().directory
    summarize(sorted(path.parent for path in home.glob(f"**/{METRICS}")), home)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
