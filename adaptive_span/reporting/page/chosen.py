"""Find the runs that a page shows, and give each a name that tells it from the others."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_span.errors import UserError, shown
from adaptive_span.reporting import run_record
from adaptive_span.reporting.run_record import RunRecord
from adaptive_span.terminal.plain_text import without_secrets

NAMED = 3  # settings in the name of a run


@dataclass(frozen=True)
class Run:
    """A run on the page.

    Attributes:
        name: Tells it from the others: its folder, or the path from the folder that holds them all.
        varied: The settings in which runs of the page differ, with the values of this one.
        record: What it has left.
    """

    name: str
    varied: dict[str, Any]
    record: RunRecord

    @property
    def label(self) -> str:
        """Its name with what it differs in, where that is short."""
        if not 0 < len(self.varied) <= NAMED:
            return self.name
        values = ", ".join(f"{key.rpartition('.')[2]}={shown(value, 24)}" for key, value in self.varied.items())
        return f"{self.name} ({values})"


def read(folders: Sequence[Path]) -> list[Run]:
    """Read the runs in and below some folders, each once.

    Raises:
        UserError: A folder is none, or holds no run that has begun; or a file of a run is damaged.
    """
    directories = {path.resolve(): path for folder in folders for path in _directories(folder)}
    records = [run_record.read(path) for path in directories.values()]
    above = Path(os.path.commonpath([path.parent for path in directories]))
    keys = list(run_record.varied_settings(records))
    runs = [
        Run(str(path.relative_to(above)), {key: without_secrets(record.settings.get(key)) for key in keys}, record)
        for path, record in zip(directories, records, strict=True)
    ]
    return sorted(
        runs, key=lambda run: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", run.name)]
    )


def _directories(folder: Path) -> list[Path]:
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; give the directory of a run, or a folder of runs")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; a page is made of the directory of a run, or of a folder of runs")
    directories = run_record.directories_below(folder)
    if not directories:
        raise UserError(f"{folder} holds no run that has begun; give the directory of a run, or a folder of runs")
    return directories
