"""Draw what the heads of a model learned: how far each looks, and how that grew."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from adaptive_span.reporting.figure_style import (
    BOUND,
    doubling_ticks,
    line_style,
    new_figure,
    open_axes,
    plain,
    set_ticks,
)
from adaptive_span.reporting.tracking import Spans

COLOURS = "YlGnBu"  # from light to dark, also in grey


def heat_map(spans: Spans, max_span: int, ramp: int, title: str) -> Figure:
    """Draw a cell per head, the darker the further it looks, with the number of those that look far.

    Args:
        spans: Effective span of every head, in tokens, layer by layer, (N, H).
        max_span: The longest span allowed, in tokens.
        ramp: The shortest one, in tokens: the ramp of the mask.
        title: What stands above.
    """
    layers, heads = len(spans), max(map(len, spans))
    figure = new_figure(max(4.6, 0.5 * heads + 1.8), max(2.4, 0.27 * layers + 1.3))
    axes = figure.add_subplot()
    low = min(ramp, max_span / 2)
    scale = LogNorm(low, max_span, clip=True)
    image = axes.imshow(np.array(spans), COLOURS, norm=scale, aspect="auto", origin="lower", interpolation="none")
    for layer, row in enumerate(spans):
        for head, span in enumerate(row):
            if span >= 2 * ramp:
                dark = scale(span) > 0.55
                axes.text(
                    head, layer, plain(span), ha="center", va="center", size=7, color="white" if dark else "black"
                )
    axes.set_xticks(range(heads))
    axes.set_yticks(range(0, layers, max(1, math.ceil(layers / 24))))
    axes.set_xticks(np.arange(heads + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(layers + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("head")
    axes.set_ylabel("layer (0 reads the text)")
    bar = figure.colorbar(image, ax=axes, label="span (tokens)", pad=0.02, aspect=18 + layers)
    bar.outline.set_visible(False)
    set_ticks(bar.ax.yaxis, doubling_ticks(low, max_span))
    figure.suptitle(title, size="medium")
    return figure


def evolution(over_time: Sequence[tuple[int, Spans]], max_span: int, ramp: int, title: str) -> Figure:
    """Draw the span of every head over the steps of a training, a panel per layer.

    Args:
        over_time: Each logged step, and the effective span of every head there, in tokens, (N, H).
        max_span: The longest span allowed, in tokens; a line of its own.
        ramp: The shortest one, in tokens; a line of its own.
        title: What stands above.
    """
    steps, spans = [step for step, _ in over_time], np.array([each for _, each in over_time])  # (S, N, H)
    _, layers, heads = spans.shape
    columns = min(layers, 3 if layers <= 6 else 4 if layers <= 16 else 6)
    rows = math.ceil(layers / columns)
    figure = new_figure(2.3 * columns + 1.2, 1.7 * rows + 0.9)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for layer, axes in enumerate(panels.flat):
        if layer >= layers:
            axes.set_visible(False)
            continue
        for head in range(heads):
            label = f"head {head}" if layer == 0 else None
            axes.plot(steps, spans[:, layer, head], linewidth=1.3, label=label, **line_style(head))
        for bound in (ramp, max_span):
            axes.axhline(bound, color=BOUND, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.set_title(f"layer {layer}", size="small", loc="left", pad=2)
        _name_far_heads(axes, steps[-1], over_time[-1][1][layer], ramp)
        _finish_panel(axes, min(ramp, max_span / 2), max_span)
        axes.tick_params(labelleft=layer % columns == 0, labelbottom=layer + columns >= layers, labelsize="small")
    bounds = f"dashed: the maximum, {max_span:,}, and the ramp, {ramp}, which every head can see"
    figure.supxlabel(f"step  ({bounds})", size="small")
    figure.supylabel("span (tokens)", size="small")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    figure.suptitle(title, size="medium")
    return figure


def _finish_panel(axes: Axes, low: float, high: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(low / 1.25, high * 1.25)
    set_ticks(axes.yaxis, doubling_ticks(low, high, most=5))
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    open_axes(axes)


def _name_far_heads(axes: Axes, step: int, spans: list[float], ramp: int) -> None:
    """Write the number of each head that looks far at the end of its line, where the names do not touch."""
    above = math.inf
    for head in sorted(range(len(spans)), key=lambda head: -spans[head]):
        if spans[head] < 1.5 * ramp:
            return
        if above / spans[head] > 1.35:
            axes.annotate(
                str(head), (step, spans[head]), (3, 0), textcoords="offset points", va="center", size=7,
                color=line_style(head)["color"],
            )  # fmt: skip
            above = spans[head]
