"""How all figures look: colours that colour-blind people tell apart, plain tick labels, and one way to save them."""

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from adaptive_span.storage.writing import atomic_write, explain_disk_errors

# Okabe and Ito's palette for all kinds of colour vision, its yellow left out: it is too light for a line.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444", "#8C6BB1")
STYLES = ("-", "--", ":", "-.")
BOUND = "#888888"  # lines of what a value cannot pass


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size, in inches, that needs no screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dashes of a line among others: the dashes change where the colours begin again."""
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": STYLES[index // len(PALETTE) % len(STYLES)]}


def plain(value: float) -> str:
    """Format a tick: 8,192 or 0.25, never with an exponent."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.3g}"


def doubling_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Return powers of two from `low` to `high`, at most so many: every second or fourth of them where need be."""
    exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    step = max(1, math.ceil(len(exponents) / most))
    return [2.0**exponent for exponent in reversed(exponents[::-1][::step])]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten from `low` to `high`; fewer of them over many powers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1, 3) if len(powers) <= 5 else (1,)
    return [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]


def set_ticks(axis: Axis, ticks: Iterable[float]) -> None:
    """Label an axis at these values alone, all in one form."""
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def open_axes(axes: Axes) -> None:
    """Leave out the frame above and on the right, and draw a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format that the ending of `path` names.

    Its words are shown as they are: a name may hold $, which would begin a formula, and signs that the font lacks,
    which become boxes.

    Raises:
        UserError: The file cannot be written.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(temporary, dpi=150, format=path.suffix.removeprefix("."))
