"""Print lines and tables, with every text exactly as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adaptive_span.terminal.plain_text import shown


class PlainConsole(Console):
    """A console that prints text as it is: names and values hold neither markup nor commands to a terminal."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Escape what steers a terminal and mask secrets, then render."""
        return super().render_str(shown(text), **how)


console = PlainConsole(highlight=False, soft_wrap=True, markup=False, emoji=False)


def print_line(text: str) -> None:
    """Print a line, however long."""
    console.print(text)


def print_table(table: Table) -> None:
    """Print an empty line and a table."""
    console.print()
    console.print(table)


def print_places(places: dict[str, str | Path | None]) -> None:
    """Print an empty line, then files, addresses and the next commands to type as fields."""
    console.print()
    print_fields(places)


def print_fields(fields: Mapping[str, str | Path | None]) -> None:
    """Print names with their values side by side, a line each, never cut. Those without a value are left out."""
    width = max(map(len, fields))
    for name, value in fields.items():
        if value:
            print_line(f"{name:<{width}}  {value}")
