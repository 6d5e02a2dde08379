"""Put the numbers of a run into tables."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from adaptive_span.model.flops import TRAINING
from adaptive_span.reporting import units
from adaptive_span.reporting.scores import Summary


def readable(value: float, digits: int) -> str:
    """Format a score. A perplexity with more digits than a line is written with an exponent."""
    return f"{value:.{digits}f}" if value < 1e6 else f"{value:.3g}"


def span_table(spans: list[list[float]], max_span: int) -> Table:
    """Return a table of each layer's mean and longest effective span, in tokens."""
    table = Table(title=f"span in tokens, of at most {max_span}", title_justify="left", box=None, pad_edge=False)
    for heading in ("layer", "mean", "max"):
        table.add_column(heading, justify="right")
    for layer, heads in enumerate(spans):
        table.add_row(str(layer), f"{sum(heads) / len(heads):.1f}", f"{max(heads):.1f}")
    return table


def score_table(title: str, scores: dict[str, dict[str, float]], published: dict[str, float] | None = None) -> Table:
    """Return a table with a row per split.

    Args:
        title: Above the table.
        scores: By split, then by unit; each unit is a column.
        published: What the papers report, by split; a column of its own where there is any.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("split")
    for unit in next(iter(scores.values()), {}):
        table.add_column(units.label(unit), justify="right")
    if published:
        table.add_column("published", justify="right")
    for split, values in scores.items():
        cells = [split, *(readable(value, 4) for value in values.values())]
        if published:
            cells.append(f"{published[split]:.2f}" if split in published else "")
        table.add_row(*cells)
    return table


def all_scores_table(summaries: Sequence[Summary], path: Path) -> Table:
    """Return a table of everything that an `evaluation.json` holds, a row per score.

    Args:
        summaries: The scores.
        path: The file, for the title.
    """
    table = Table(title=f"all scores in {path}", title_justify="left", box=None, pad_edge=False)
    table.add_column("text, protocol, cut", overflow="fold")
    for heading in ("step", "valid", "test", "", "mean span"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for score in summaries:
        values = [readable(score.values[split], 4) if split in score.values else "–" for split in ("valid", "test")]
        table.add_row(score.name, str(score.step), *values, units.label(score.unit), f"{score.mean_span:.1f}")
    return table


def flops_table(flops: dict[str, float]) -> Table:
    """Return a table of floating-point operations per token.

    Args:
        flops: Of a forward pass: with the learned spans, with every head at the maximum, and in between.
    """
    table = Table(
        title="floating-point operations per token, in millions", title_justify="left", box=None, pad_edge=False
    )
    for heading in ("spans", "forward", "training"):
        table.add_column(heading, justify="left" if heading == "spans" else "right")
    for name, value in flops.items():
        table.add_row(name.replace("_", " "), f"{value / 1e6:,.1f}", f"{TRAINING * value / 1e6:,.1f}")
    return table
