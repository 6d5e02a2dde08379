"""Draw what a training step costs while spans grow."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adaptive_span.reporting.figures import save_figure


def draw_growth(rows: dict[str, dict[str, float | None]], path: Path) -> None:
    """Draw time and memory of a step against the mean span, a curve per implementation.

    Args:
        rows: As `benchmark growth` makes them.
        path: The file to write.
    """
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, column, label in zip(figure.subplots(1, 2), ("ms", "MiB"), ("step (ms)", "memory (MiB)"), strict=True):
        for name in dict.fromkeys(key.split(",")[0] for key in rows):
            points = [(row["mean span"], row[column]) for key, row in rows.items() if key.split(",")[0] == name]
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("mean span (tokens)")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, path)
