"""Show what a fit has found: the spans, the cache that they leave, what they cost, and what that is worth."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.table import Table

from adaptive_span.errors import UserError
from adaptive_span.hf.spans import FittedSpans
from adaptive_span.reporting.figure_style import BOUND, line_style, new_figure, open_axes, save_figure
from adaptive_span.reporting.figures import heat_map

SHORTEST, FACTOR = 1024, 4  # lengths of text in the table: the shortest, and how much longer each next one is
MB = 1e6
QUARTERS = ("first quarter of the context", "second quarter", "third quarter", "last quarter")
BASELINES = {"one_window": "one window for all heads", "window_per_layer": "one window per layer"}
Point = tuple[float, float]  # share of the cache, and loss in nats per token


def cache_table(fitted: FittedSpans, max_length: int, width: int = 2) -> Table:
    """Return a table of what keys and values of texts take, a row per length, up to the model's own.

    Args:
        fitted: the spans. A head whose span is the context of the fit keeps longer texts whole.
        max_length: the longest text that the model takes, in tokens.
        width: bytes of a number in the cache.
    """
    table = Table(title=f"KV cache in MB, {8 * width} bits a number", title_justify="left", box=None, pad_edge=False)
    for heading in ("tokens", "full", "by each layer's longest head", "by key/value head", "share"):
        table.add_column(heading, justify="right")
    for length in lengths(max_length):
        full, by_layer, by_head = cache_sizes(fitted, length, width)
        sizes = [_megabytes(size) for size in (full, by_layer, by_head)]
        table.add_row(f"{length:,}", *sizes, f"{by_head / full:.1%}")
    return table


def lengths(max_length: int) -> list[int]:
    """Return 1,024 tokens, 4 times as many, and so on, and at last the longest text."""
    powers = range(1 + math.ceil(math.log(max(max_length / SHORTEST, 1), FACTOR)))
    return [length for n in powers if (length := SHORTEST * FACTOR**n) < max_length] + [max_length]


def cache_sizes(fitted: FittedSpans, length: int, width: int) -> tuple[int, int, int]:
    """Return the bytes of a cache without spans, with each layer's longest span for all its heads, and with all spans.

    A layer that is a sliding one by itself keeps its window in each of them.
    """
    whole = [replace(layer, spans=[fitted.context] * len(layer.spans)) for layer in fitted.layers]
    longest = [replace(layer, spans=[max(layer.spans)] * len(layer.spans)) for layer in fitted.layers]
    full, by_layer = (replace(fitted, layers=layers).cache_bytes(length, width) for layers in (whole, longest))
    return full, by_layer, fitted.cache_bytes(length, width)


def loss_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """Return a table of the loss on held-out text before and after, a row per part of the context.

    Args:
        before: what `losses.measure` returned for the model as it was.
        after: and with its spans, for the same text.
    """
    title = f"nats per token, on {before['tokens']:,} held-out tokens"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("full attention", "with its spans", "more by"):
        table.add_column(heading, justify="right")
    rows = zip(QUARTERS, before["by_quarter"], after["by_quarter"], strict=True)
    for name, was, now in [("all", before["nats_per_token"], after["nats_per_token"]), *rows]:
        table.add_row(name, f"{was:.3f}", f"{now:.3f}", f"{round(now - was, 3) + 0.0:+.3f}")  # no −0
    return table


def save_heat_map(fitted: FittedSpans, folder: Path) -> Path:
    """Draw how far each head sees, as spans.png and spans.svg in a folder, and return the first.

    Raises:
        UserError: The disk does not take it.
    """
    heads = max(len(layer.spans) for layer in fitted.layers)
    spans = [[*layer.spans, *[math.nan] * (heads - len(layer.spans))] for layer in fitted.layers]
    title = f"{Path(fitted.model).name}: {fitted.share():.0%} of the cache at a context of {fitted.context:,}"
    if sliding := [layer.window for layer in fitted.layers if layer.window is not None]:
        title += f"\n{len(sliding)} layers, not counted, are sliding ones by themselves, of {max(sliding):,} tokens"
    figure = heat_map(spans, fitted.context, fitted.ramp, title)
    for ending in ("svg", "png"):
        save_figure(figure, path := folder / f"spans.{ending}")
    return path


def pareto(points: Sequence[Point], baselines: Mapping[str, Sequence[Point]], full: float, title: str) -> Figure:
    """Draw the loss against the share of the cache that is kept: the lower and the further left, the better.

    Args:
        points: of learned spans.
        baselines: of windows by hand, by their names.
        full: the loss with full attention, in nats per token; a line of its own.
        title: what stands above.
    """
    figure = new_figure(6.0, 3.8)
    axes = figure.add_subplot()
    for index, (name, line) in enumerate({"learned spans": points, **baselines}.items()):
        shares, nats = zip(*sorted(line), strict=True)
        axes.plot(shares, nats, marker="o", markersize=4, linewidth=1.5, label=name, **line_style(index))
    axes.axhline(full, color=BOUND, linewidth=1, linestyle=(0, (4, 3)), label="full attention", zorder=1)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("KV cache that is kept")
    axes.set_ylabel("loss (nats per token)")
    open_axes(axes)
    axes.legend(frameon=False)
    figure.suptitle(title, size="medium")
    return figure


def compare(fits: Sequence[FittedSpans]) -> Figure:
    """Draw the loss against the share of the cache for fits of one model to several budgets, with their baselines.

    Args:
        fits: as `adaptive-span fit` writes them, with what was measured.

    Raises:
        UserError: They are of different models, contexts or texts, or hold no measurements.
    """
    first = fits[0]
    try:
        for fit in fits:
            if _setting(fit) != _setting(first):
                raise UserError(
                    f"{fit.model} at a context of {fit.context:,} and {first.model} at one of {first.context:,} were "
                    f"not measured on the same text with the same weights; compare fits that differ in budget alone"
                )
        points = [_point(fit.fit["share"], fit.fit["after"]) for fit in fits]
        lines = {
            words: [_point(fit.fit["baselines"][name]["share"], fit.fit["baselines"][name]) for fit in fits]
            for name, words in BASELINES.items()
        }
        full = float(first.fit["before"]["loss"]["nats_per_token"])
    except (KeyError, TypeError) as error:
        raise UserError(f"the spans of {first.model} hold no measurements ({error}); fit them again") from None
    data = first.fit["asked"]["data"]
    text = Path(data["file"] or data["path"] or data["name"]).name
    title = f"{Path(first.model).name} at a context of {first.context:,}, on {text}"
    return pareto(points, lines, full, title)


def _setting(fitted: FittedSpans) -> tuple[Any, ...]:
    asked = fitted.fit["asked"]
    text = [asked["data"][key] for key in ("name", "file", "path")]
    return fitted.fingerprint, fitted.context, asked["held_out"], text


def _point(share: float, measured: Mapping[str, Any]) -> Point:
    return share, measured["loss"]["nats_per_token"]


def _megabytes(size: int) -> str:
    return f"{size / MB:,.1f}" if size >= MB else f"{size / MB:.3f}"
