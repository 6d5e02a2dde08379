"""Draw several runs beside each other: their losses over steps, and what they score against what they cost."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from adaptive_span.errors import UserError
from adaptive_span.reporting import units
from adaptive_span.reporting.figure_style import PALETTE, line_style, log_ticks, new_figure, open_axes, plain, set_ticks
from adaptive_span.reporting.run_record import RunRecord, varied_settings

MOST_TICKS = 8
NAMED = 12  # runs that a legend names; the best of them where there are more


def run_names(records: Sequence[RunRecord]) -> list[str]:
    """Return a name for each run: the settings in which it differs from the others, else its directory's name."""
    varied = list(varied_settings(records)) if len(records) > 1 else []
    if not 1 <= len(varied) <= 3:
        return [record.directory.name for record in records]
    return [" ".join(f"{key.split('.')[-1]}={record.settings.get(key)}" for key in varied) for record in records]


def best_first(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs that have a validation, the best first.

    Raises:
        UserError: None has one, or their losses are in different units.
    """
    different = {record.unit for record in records}
    if len(different) > 1:
        raise UserError(
            f"{records[0].directory} and others have losses in {' and '.join(sorted(different))}, which one figure "
            f"cannot compare; give runs on bytes, on words, or on subwords"
        )
    known = [record for record in records if record.score("valid") is not None]
    if not known:
        raise UserError(f"{records[0].directory} and the others have no validation yet; there is nothing to compare")
    return sorted(known, key=lambda record: record.score("valid") or math.inf)


def curves(records: Sequence[RunRecord]) -> Figure:
    """Draw the validation loss of each run over its steps, the training loss as a thin line."""
    best = best_first(records)
    figure = new_figure(8.5, 4.4)
    axes = figure.add_subplot()
    unit = best[0].unit
    for index, (record, name) in enumerate(zip(best, run_names(best), strict=True)):
        style = line_style(index) if index < NAMED else {"color": "#bbbbbb", "linestyle": "-"}
        label = name if index < NAMED else None
        order = 3 if index < NAMED else 1
        if train := record.curve(f"train/{unit}"):
            axes.plot(*zip(*train, strict=True), linewidth=0.6, alpha=0.5, zorder=order, **style)
        valid = record.curve(f"valid/{unit}")
        axes.plot(*zip(*valid, strict=True), linewidth=1.6, marker=".", label=label, zorder=order, **style)
    _limit_losses(axes, best)
    axes.set_xlabel("step  (thin: the training loss)")
    axes.set_ylabel(f"{units.label(unit)} on a part of valid")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    open_axes(axes)
    _legend(figure, best)
    figure.suptitle(_title(best), size="medium")
    return figure


def cost(records: Sequence[RunRecord]) -> Figure:
    """Draw the score of each run on valid against its floating-point operations per token, and its maximum span."""
    best = best_first(records)
    figure = new_figure(9.5, 4.0)
    panels: dict[str, Callable[[RunRecord], float | None]] = {
        "millions of operations per token, forward, with the learned spans": lambda run: (
            (run.last("flops_per_token") or math.nan) / 1e6
        ),
        "maximum span (tokens)": lambda run: run.config.model.max_span,
    }
    for axes, (quantity, value) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for index, (record, name) in enumerate(zip(best, run_names(best), strict=True)):
            colour = PALETTE[index % len(PALETTE)] if index < NAMED else "#bbbbbb"
            marker = "osD^v"[index // len(PALETTE) % 5]
            label = name if index < NAMED else None
            axes.plot(value(record), record.score("valid"), marker, color=colour, label=label)
        axes.set_xscale("log")
        _spread(axes, [value(record) for record in best])
        axes.set_xlabel(quantity, size="small")
        open_axes(axes)
    figure.axes[0].set_ylabel(f"{units.label(best[0].unit)} on valid")
    _legend(figure, best)
    figure.suptitle(_title(best), size="medium")
    return figure


def _spread(axes: Axes, values: Sequence[float | None]) -> None:
    """Give a logarithmic axis limits with room around the values, and plain ticks: at the values, if they are few."""
    known = sorted({value for value in values if value})
    low, high = known[0] / 1.15, known[-1] * 1.15
    axes.set_xlim(low, high)
    apart = all(after / before > 1.2 for before, after in pairwise(known))
    set_ticks(axes.xaxis, known if apart and len(known) <= MOST_TICKS else log_ticks(low, high))


def _limit_losses(axes: Axes, records: Sequence[RunRecord]) -> None:
    """Leave out how high the losses began, which would press all else together."""
    unit = records[0].unit
    validations = [[value for _, value in record.curve(f"valid/{unit}")] for record in records]
    losses = [value for record in records for _, value in record.curve(f"train/{unit}")]
    lowest, highest = min([*losses, *map(min, validations)]), max(values[0] for values in validations)
    axes.set_ylim(lowest - 0.08 * (highest - lowest), highest + 0.15 * (highest - lowest) or None)


def _legend(figure: Figure, records: Sequence[RunRecord]) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    title = f"the best {NAMED} of {len(records)}" if len(records) > NAMED else "the best first"
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small", title=title)


def _title(records: Sequence[RunRecord]) -> str:
    best = records[0]
    runs = f"{len(records)} runs" if len(records) > 1 else best.directory.name
    data = " and ".join(sorted({record.config.data.name for record in records}))
    score = f"{best.score('valid'):.3f} {units.label(best.unit)}"
    title = f"{runs} on {data}: the best has {score} on valid after {best.step:,} steps"
    heads = [span for layer in best.spans() or [] for span in layer]
    if not heads:
        return title
    mean, most = sum(heads) / len(heads), best.config.model.max_span
    return f"{title}\nits mean span is {mean:.0f} tokens, {100 * mean / most:.2g} % of the maximum, {most:,}"
