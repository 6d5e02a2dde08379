"""Draw how far each head of a model looks."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from adaptive_span.storage.writing import atomic_write, explain_disk_errors


def draw_spans(spans: list[list[float]], max_span: int, path: Path) -> None:
    """Draw a bar per head, on a logarithmic axis of tokens.

    Args:
        spans: Effective span of every head, in tokens, layer by layer.
        max_span: The longest span allowed, in tokens.
        path: The file to write; its ending decides the format.

    Raises:
        UserError: The file cannot be written.
    """
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
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format that the ending of `path` names."""
    with explain_disk_errors(path):
        path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix.removeprefix("."))
