"""Show how a training goes: three lines that stay in place on a terminal, plain lines in the log of a batch job."""

import math
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, Task, TextColumn
from rich.text import Text

from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.reporting import units
from adaptive_span.reporting.console import readable
from adaptive_span.reporting.tracking import Metrics, Spans
from adaptive_span.terminal.printing import console

BARS = "▁▂▃▄▅▆▇█"
REFRESHES = 2  # per second: more would flicker in a terminal within a terminal
WINDOW = 600  # seconds whose speed the time left is told by: longer than any step


class TrainingProgress:
    """Show steps, loss, the time left, speed and spans.

    Args:
        step: Updates so far.
        total: Updates at the end.
        model: The network, for its longest and shortest span.
        best: The best loss on the validation part so far, as it is shown.
    """

    def __init__(self, step: int, total: int, model: ModelConfig, best: float = math.inf):
        self.first, self.total, self.model, self.best = step, total, model, best
        self.started = time.monotonic()
        self.screen = _Screen(
            TextColumn("{task.fields[line]}"),
            BarColumn(bar_width=None),
            expand=True,
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=REFRESHES,
            speed_estimate_period=WINDOW,
        )
        self.task = self.screen.add_task("", total=total, completed=step, line="", loss="")

    def __enter__(self) -> Self:
        self.screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the lines as they are: what is printed from now on stands below them."""
        self.screen.stop()

    def advance(self, step: int) -> None:
        """Move the bar to a step."""
        self.screen.update(self.task, completed=step)

    def show(self, step: int, metrics: Metrics, spans: Spans) -> None:
        """Show the numbers of a logged step, in place or in a line of their own where there is no terminal.

        A validation has a line of its own on a terminal too, which stays.

        Args:
            step: Updates so far.
            metrics: By name, as they are logged.
            spans: Effective span of every head, in tokens, (N, H).
        """
        unit = units.of_scores(key.removeprefix("train/") for key in metrics)
        shown = units.label(unit)
        train = f"train {shown} {readable(metrics[f'train/{unit}'], 3)}"
        nats = metrics.get("train/nats_per_token")
        losses = [train if nats is None else f"{train} ({nats:.3f} nats/token)"]
        if (valid := metrics.get(f"valid/{unit}")) is not None:
            mark = " (new best)" if valid < self.best else ""
            averaged = metrics.get(f"valid_average/{unit}")
            beside = "" if averaged is None else f", averaged weights {readable(averaged, 3)}"
            losses.append(f"valid {shown} {readable(valid, 3)}{mark}{beside}")
            self.best = min(self.best, valid)
        reach = f"mean {metrics['span/mean']:.0f} max {metrics['span/max']:.0f}"
        speed = f"{metrics['tokens_per_second']:,.0f} tokens/s"
        if not console.is_terminal:
            left = (time.monotonic() - self.started) / max(1, step - self.first) * (self.total - step)
            console.print(
                f"step {step}/{self.total} · {' · '.join([*losses, f'span {reach}', speed])} · {clock(left)} left"
            )
            return
        best = [f"best valid {shown} {readable(self.best, 3)}"] if math.isfinite(self.best) else []
        pace = [f"{metrics['ms_per_step']:,.0f} ms/step", f"{metrics['peak_memory_mib']:,.0f} MiB"]
        bars = span_bars(spans, self.model.ramp, self.model.max_span)
        numbers = " · ".join([*best, speed, *pace])
        self.screen.below = numbers, f"span by layer {bars} {reach} of {self.model.max_span:,}"
        self.screen.update(self.task, completed=step, loss=train)
        if valid is not None:
            console.print(f"step {step:,} · {' · '.join(reversed(losses))}")


class _Screen(Progress):
    """A bar with lines below it. None of them is ever wrapped: a terminal that is too narrow shows their beginnings."""

    below: tuple[str, ...] = ("", "the first numbers come with the first step that is logged")

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            task.fields["line"] = _first_line(task)
        yield self.make_tasks_table(self.tasks)
        yield from (Text(line, no_wrap=True, overflow="ellipsis") for line in self.below)


def _first_line(task: Task) -> str:
    left = "–" if task.time_remaining is None else clock(task.time_remaining)
    parts = [f"step {task.completed:,.0f}/{task.total:,.0f}", task.fields["loss"], f"{left} left"]
    return " · ".join(filter(None, parts))


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d}:{int(seconds % 60):02d}"


def span_bars(spans: Spans, shortest: float, longest: float) -> str:
    """Return a bar per layer: how far its longest head looks, on a logarithmic scale.

    Args:
        spans: Effective span of every head, in tokens, (N, H).
        shortest: The span of the lowest bar, in tokens: the ramp, below which no head learns to look.
        longest: That of the highest: the maximum.
    """
    scale = math.log(max(longest, shortest + 1) / shortest)
    heights = [math.log(max(*heads, shortest) / shortest) / scale for heads in spans]
    return "".join(BARS[min(len(BARS) - 1, round(height * (len(BARS) - 1)))] for height in heights)
