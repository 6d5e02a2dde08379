"""Draw what a training step costs while spans grow."""

from pathlib import Path

from adaptive_span.reporting.figure_style import (
    doubling_ticks,
    line_style,
    log_ticks,
    new_figure,
    open_axes,
    save_figure,
    set_ticks,
)


def draw_growth(rows: dict[str, dict[str, float | None]], title: str, path: Path) -> None:
    """Draw time and memory of a step against the mean span, a curve per implementation.

    Args:
        rows: As `benchmark growth` makes them.
        title: What was measured, and where.
        path: The file to write.
    """
    figure = new_figure(9.0, 3.8)
    names = list(dict.fromkeys(key.split(",")[0] for key in rows))
    columns = {"ms": ("seconds per step", 1e-3), "MiB": ("memory (GiB)", 2**-10)}
    measured = [column for column in columns if all(row[column] is not None for row in rows.values())]
    for axes, column in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
        label, scale = columns[column]
        points = {key: (row["mean span"] or 0.0, scale * (row[column] or 0.0)) for key, row in rows.items()}
        for index, name in enumerate(names):
            own = [point for key, point in points.items() if key.split(",")[0] == name]
            axes.plot(*zip(*own, strict=True), marker="o", label=name, **line_style(index))
        means, values = zip(*points.values(), strict=True)
        axes.set_xscale("log")
        axes.set_yscale("log")
        set_ticks(axes.xaxis, doubling_ticks(min(means), max(means), most=5))
        set_ticks(axes.yaxis, log_ticks(min(values) / 1.2, max(values) * 1.2))
        axes.set_xlabel("mean span (tokens)")
        axes.set_ylabel(label)
        open_axes(axes)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(f"A training step while spans grow: {title}", size="medium")
    save_figure(figure, path)
