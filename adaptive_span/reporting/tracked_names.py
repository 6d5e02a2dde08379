"""Name what trackers keep beside the numbers of `metrics.jsonl`: a curve per head, the heat map, the final numbers."""

from typing import Any

from adaptive_span.reporting import units
from adaptive_span.reporting.scores import AVERAGE
from adaptive_span.reporting.tracking import Metrics, Spans

HEAT_MAP = "spans/heat_map"


def head_curve(layer: int, head: int) -> str:
    """Return the name of a head's curve."""
    return f"span/layer_{layer:02d}/head_{head}"


def head_curves(spans: Spans) -> Metrics:
    """Return the span of each head under the name of its curve."""
    return {head_curve(layer, head): span for layer, row in enumerate(spans) for head, span in enumerate(row)}


def is_validation(metrics: Metrics) -> bool:
    """Return whether numbers are of a step that was validated."""
    return any(key.startswith("valid/") for key in metrics)


def final_numbers(evaluation: dict[str, Any]) -> Metrics:
    """Return what a run came to, flat and by name: exact scores, parameters, and operations per token.

    Args:
        evaluation: What `evaluation.json` holds.
    """
    parts = {"exact": evaluation} | ({"exact_average": evaluation[AVERAGE]} if AVERAGE in evaluation else {})
    scores = {
        f"{name}/{split}/{unit}": value
        for name, part in parts.items()
        for split, values in part["splits"].items()
        for unit, value in values.items()
        if unit in units.LOSSES
    }
    flops = {f"flops/{name}": value for name, value in evaluation["flops_per_token"].items()}
    heads = [span for layer in evaluation["spans"] for span in layer]
    spans = {"exact/span/mean": sum(heads) / len(heads), "exact/span/max": max(heads)}
    return {**scores, **spans, "exact/step": evaluation["step"], **flops, "parameters": evaluation["parameters"]}
