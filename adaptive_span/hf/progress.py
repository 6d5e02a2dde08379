"""Show how a fit goes: a bar on a terminal, plain lines in the log of a batch job."""

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adaptive_span.reporting.progress import clock
from adaptive_span.terminal.printing import console, print_line

LINES = 20  # of a whole fit where there is no terminal
REMEMBERED = 0.9  # of the loss of the texts before: one text says little


class FitProgress:
    """Show steps, loss, the share of keys and values, and the time left.

    Args:
        step: Steps so far.
        total: Steps at the end.
    """

    def __init__(self, step: int, total: int):
        self.first, self.total = step, total
        self.started, self.loss = time.monotonic(), float("nan")
        self.bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=None), TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True), TextColumn("left"), console=console, expand=True,
            disable=not console.is_terminal, speed_estimate_period=600,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=total, completed=step, numbers="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def show(self, step: int, numbers: dict[str, float]) -> None:
        """Show the numbers of a step: `loss` in nats per token, `share` and `penalty`."""
        loss = numbers["loss"]
        self.loss = loss if self.loss != self.loss else REMEMBERED * self.loss + (1 - REMEMBERED) * loss
        line = f"loss {self.loss:.3f} nats per token · {numbers['share']:.1%} of the KV cache"
        self.bar.update(self.task, completed=step, numbers=line)
        if not console.is_terminal and (step % max(1, self.total // LINES) == 0 or step == self.total):
            left = (time.monotonic() - self.started) / max(1, step - self.first) * (self.total - step)
            print_line(f"step {step}/{self.total} · {line} · {clock(left)} left")
