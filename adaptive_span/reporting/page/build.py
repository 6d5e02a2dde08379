"""Build the page: everything that it needs stands in it once, and nothing in it asks a network."""

import base64
import hashlib
import math
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path

from adaptive_span.errors import UserError
from adaptive_span.reporting import units
from adaptive_span.reporting.console import readable
from adaptive_span.reporting.page import charts, chosen, tables
from adaptive_span.reporting.page.chosen import Run
from adaptive_span.storage.writing import atomic_write
from adaptive_span.terminal.plain_text import without_secrets

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined, Template
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs
except ModuleNotFoundError as missing:
    raise UserError(f"there is no {missing.name} here; pip install 'adaptive-span[report]' brings it") from None

PACKAGE = "adaptive_span.reporting.page"


def write(folders: Sequence[Path], path: Path) -> int:
    """Write the page of all runs in and below some folders, and return how many they are.

    Raises:
        UserError: A folder holds no run, a run's file is damaged, or the disk does not take the page.
    """
    runs = chosen.read(folders)
    text = page(runs)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return len(runs)


def page(runs: Sequence[Run]) -> str:
    """Return the page of some runs as HTML. What comes from their files is escaped, as text and as JSON."""
    rows = [tables.row(run) for run in runs]
    scripts = _scripts()
    return _template().render(
        rows=rows,
        most=max((value for row in rows for value in row.flops.values()), default=1.0),
        units=tables.units(runs),
        unit_names=units.NAMES,
        settings=[without_secrets(run.record.settings) for run in runs],
        data=charts.data(runs),
        style=Markup(files(PACKAGE).joinpath("style.css").read_text(encoding="utf-8")),
        scripts=list(scripts),
        hashes=list(scripts.values()),
        made=datetime.now().astimezone(),
    )


def large(value: float) -> str:
    """Return a number with three digits and its unit: 12.3 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value < 1000 * size else f"{value / size:,.0f}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a time with two units at most."""
    if not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@cache
def _template() -> Template:
    """Return the template, which escapes everything but the style and the scripts of this package."""
    environment = Environment(
        loader=PackageLoader(PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {"score": lambda value: readable(value, 4), "large": large, "duration": duration}
    environment.filters["unit"] = units.label
    return environment.get_template("template.html.j2")


@cache
def _scripts() -> dict[Markup, str]:
    """Return the scripts of the page, each with its checksum: the page's policy runs no other one."""
    scripts = [get_plotlyjs(), files(PACKAGE).joinpath("script.js").read_text(encoding="utf-8")]
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    return {
        Markup(script): f"sha256-{base64.b64encode(digest).decode()}"
        for script, digest in zip(scripts, digests, strict=True)
    }
