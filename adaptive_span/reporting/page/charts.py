"""Thin what a run has logged to what its charts need: `script.js` draws it with Plotly."""

from collections.abc import Sequence
from typing import Any, TypeVar

from adaptive_span.errors import UserError
from adaptive_span.reporting.page.chosen import Run
from adaptive_span.reporting.run_directory import CONFIG
from adaptive_span.reporting.run_record import TokenLosses
from adaptive_span.reporting.tracking import Spans

T = TypeVar("T")
POINTS = 500  # of a curve
MOMENTS = 120  # of the spans of a run
FRAMES = 50  # of these, under the slider
SPANS = 250_000  # numbers on the whole page, more or less: at FRAMES moments a run has all that the slider needs


def data(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return what is drawn of each run, as JSON has it.

    Returns:
        `name` and `label`; `unit`; `floor` and `maximum` of its spans, in tokens; `total` steps; `train` and `valid`:
        steps and losses; `moments`: steps, and the spans there, layer by layer; `frames`: places in `moments`;
        `text`: the losses of a short text, or None.
    """
    heads = sum(run.record.config.model.num_layers * run.record.config.model.num_heads for run in runs)
    moments = min(MOMENTS, max(FRAMES, SPANS // max(1, heads)))
    return [_run(run, moments) for run in runs]


def _run(run: Run, most: int) -> dict[str, Any]:
    record, model = run.record, run.record.config.model
    last = record.spans()
    moments = evenly(record.spans_over_time(), most) or ([(record.step, last)] if last else [])
    for step, spans in moments:
        if [len(heads) for heads in spans] != model.num_layers * [model.num_heads]:
            raise UserError(
                f"the spans of step {step} in {record.directory} are not of {model.num_layers} layers × "
                f"{model.num_heads} heads, as its {CONFIG} has it; bring back the files of that run"
            )
    text = record.token_losses()
    return {
        "name": run.name,
        "label": run.label,
        "unit": record.unit,
        "floor": min(model.ramp, model.max_span) if model.adaptive_span else model.max_span,
        "maximum": model.max_span,
        "total": record.config.train.total_steps,
        "train": _curve(run, "train"),
        "valid": _curve(run, "valid"),
        "moments": [[step, _rounded(spans)] for step, spans in moments],
        "frames": evenly(range(len(moments)), FRAMES),
        "text": text and _text(text),
    }


def _curve(run: Run, split: str) -> list[tuple[int, float]]:
    points = evenly(run.record.curve(f"{split}/{run.record.unit}"), POINTS)
    return [(step, float(f"{value:.5g}")) for step, value in points]


def _text(text: TokenLosses) -> dict[str, Any]:
    return {
        "split": text.split,
        "step": text.step,
        "level": text.level,
        "pieces": [
            [piece, *(round(nat, 3) for nat in nats)] for piece, nats in zip(text.texts, text.nats, strict=False)
        ],
    }


def _rounded(spans: Spans) -> list[list[float]]:
    """Return spans with a decimal where it says something: a page of many runs is half as large."""
    return [[round(span) if span >= 100 else round(span, 1) for span in heads] for heads in spans]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many items, evenly from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
