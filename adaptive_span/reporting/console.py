"""What a person sees: a live bar on a terminal, plain lines in the log of a batch job, and a table at the end."""

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from adaptive_span.model.flops import TRAINING
from adaptive_span.terminal.printing import console


class TrainingProgress:
    """Steps done, loss, spans, speed and the time left."""

    def __init__(self, step: int, total: int):
        self.first, self.total = step, total
        self.started = time.monotonic()
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total, completed=step, numbers="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def advance(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """At a logged step: new numbers beside the bar, or a line of their own where there is no terminal."""
        figures = [
            f"{key.replace('/', ' ')} {readable(metrics[key], 3)}"
            for key in ("train/bpc", "train/ppl", "valid/bpc", "valid/ppl")
            if key in metrics
        ]
        figures.append(f"span mean {metrics['span/mean']:.0f} max {metrics['span/max']:.0f}")
        figures.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
        if console.is_terminal:
            self.bar.update(self.task, completed=step, numbers=" · ".join(figures))
        else:
            left = (time.monotonic() - self.started) / max(1, step - self.first) * (self.total - step)
            clock = f"{int(left // 3600)}:{int(left % 3600 // 60):02d}:{int(left % 60):02d}"
            console.print(f"step {step}/{self.total} · {' · '.join(figures)} · {clock} left")


def readable(value: float, digits: int) -> str:
    """A score; the perplexity of a model that knows nothing has more digits than a line."""
    return f"{value:.{digits}f}" if value < 1e6 else f"{value:.3g}"


def span_table(spans: list[list[float]], max_span: int) -> Table:
    table = Table(title=f"span in tokens, of at most {max_span}", title_justify="left", box=None, pad_edge=False)
    for heading in ("layer", "mean", "max"):
        table.add_column(heading, justify="right")
    for layer, heads in enumerate(spans):
        table.add_row(str(layer), f"{sum(heads) / len(heads):.1f}", f"{max(heads):.1f}")
    return table


def score_table(title: str, unit: str, scores: dict[str, float], published: dict[str, float] | None = None) -> Table:
    """One row a split; a column of published numbers where there are some."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("split")
    table.add_column(unit, justify="right")
    if published:
        table.add_column("published", justify="right")
    for split, value in scores.items():
        cells = [split, readable(value, 4)]
        if published:
            cells.append(f"{published[split]:.2f}" if split in published else "")
        table.add_row(*cells)
    return table


def flops_table(flops: dict[str, float]) -> Table:
    """Of a forward pass, beside the same model without learned spans, and without spans of each head's own."""
    table = Table(
        title="floating-point operations a token, in millions", title_justify="left", box=None, pad_edge=False
    )
    for heading in ("spans", "forward", "training"):
        table.add_column(heading, justify="left" if heading == "spans" else "right")
    for name, value in flops.items():
        table.add_row(name.replace("_", " "), f"{value / 1e6:,.1f}", f"{TRAINING * value / 1e6:,.1f}")
    return table
