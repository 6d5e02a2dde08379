"""Figures: how far each head looks, and what a training step costs while spans grow."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from adaptive_span.storage.writing import explained, whole


def draw_spans(spans: list[list[float]], max_span: int, path: Path) -> None:
    """`spans`: the effective span of every head, in tokens, layer by layer."""
    figure = Figure(figsize=(max(5.0, 0.55 * len(spans) + 2), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for layer, heads in enumerate(spans):
        width = 0.8 / len(heads)
        places = [layer - 0.4 + (head + 0.5) * width for head in range(len(heads))]
        axes.bar(places, sorted(heads), width=0.9 * width, color="#4878a8")
    axes.axhline(max_span, color="#b04a4a", linewidth=1, linestyle="--", label=f"maximum span {max_span}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(min(map(min, spans)) / 2, max_span * 1.6)
    axes.set_xticks(range(len(spans)))
    axes.set_xlabel("layer (heads sorted by span)")
    axes.set_ylabel("span (tokens)")
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_growth(rows: dict[str, dict[str, float | None]], path: Path) -> None:
    """Time and memory of a step against the mean span, by implementation; `rows` as `benchmark growth` makes them."""
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
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with explained(path):
        path.parent.mkdir(exist_ok=True)
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix.removeprefix("."))
