"""Print lines and tables, with every text shown as it is written."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adaptive_span.terminal.plain_text import shown


class PlainConsole(Console):
    """Show every text as it is written: what names and values hold is neither markup nor a command to a terminal."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(shown(text), **how)


console = PlainConsole(highlight=False, soft_wrap=True, markup=False, emoji=False)


def print_line(text: str) -> None:
    console.print(text)


def print_table(table: Table) -> None:
    console.print()
    console.print(table)


def print_places(places: dict[str, str | Path | None]) -> None:
    """Where things are, and the commands to go on with; one a line, never cut."""
    width = max(map(len, places))
    console.print()
    for name, place in places.items():
        if place:
            print_line(f"{name:<{width}}  {place}")
