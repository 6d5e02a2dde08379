"""Word what a page says of each run, for the eyes and for a screen reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from adaptive_span.reporting.page.chosen import Run
from adaptive_span.reporting.run_record import RunRecord
from adaptive_span.reporting.scores import OWN, Summary, summaries
from adaptive_span.reporting.tracking import SCORES
from adaptive_span.storage.stored import lookup

SPLITS = ("valid", "test")
COUNTED = {  # names in `evaluation.json` of what a token costs
    "learned_spans": "learned spans",
    "longest_head_of_each_layer": "each layer’s longest for all its heads",
    "maximum_span": "the maximum for all heads",
}


@dataclass(frozen=True)
class Row:
    """What the tables say of a run. None, and {}, stand for what is not known (yet).

    Attributes:
        run: Which.
        state: finished, failed, or how far it is.
        scores: By split, exact ones.
        so_far: The last loss on valid while training.
        published: By split.
        others: Scores of averaged weights, of other texts, by other protocols, or with spans cut.
        heads: How far the heads look, in a sentence.
        mean, longest: Of the effective spans, in tokens.
        flops: Per token, forward, by the words of `COUNTED`.
        speed, milliseconds, mfu: Medians over the logged lines: tokens per second, per step, share of the matrix peak.
        memory: The largest peak, in MiB.
        seconds: All steps together.
    """

    run: Run
    state: str
    scores: dict[str, float]
    so_far: float | None
    published: dict[str, float]
    others: list[Summary]
    heads: str | None
    mean: float | None
    longest: float | None
    flops: dict[str, float]
    speed: float | None
    milliseconds: float | None
    mfu: float | None
    memory: float | None
    seconds: float


def row(run: Run) -> Row:
    """Collect what the tables say of a run."""
    record = run.record
    spans = record.spans()
    heads = [span for layer in spans for span in layer] if spans else []
    memory = [value for _, value in record.curve("peak_memory_mib")]
    return Row(
        run=run,
        state=state(record),
        scores={split: record.exact[split][record.unit] for split in SPLITS if split in record.exact},
        so_far=record.last(f"valid/{record.unit}"),
        published={} if record.config.data.level == "subword" else record.config.published,
        others=[score for score in summaries(record.directory) if score.name != OWN],
        heads=_heads(heads, run) if heads else None,
        mean=sum(heads) / len(heads) if heads else record.last("span/mean"),
        longest=max(heads) if heads else record.last("span/max"),
        flops=_flops(record),
        speed=_median(record, "tokens_per_second"),
        milliseconds=_median(record, "ms_per_step"),
        mfu=_median(record, "mfu"),
        memory=max(memory) if memory else None,
        seconds=record.seconds(),
    )


def state(record: RunRecord) -> str:
    """Return how far a run is."""
    total = record.config.train.total_steps
    if record.failure:
        return f"failed after step {record.step:,}"
    if record.step >= total and record.exact:
        return f"finished after {total:,} steps"
    if record.step >= total:
        return f"all {total:,} steps, not scored yet"
    return f"{record.step:,} of {total:,} steps so far" if record.lines else "no numbers yet"


def units(runs: Sequence[Run]) -> list[str]:
    """Return the units of their losses: each has a chart of its own."""
    return sorted({run.record.unit for run in runs})


def _heads(heads: list[float], run: Run) -> str:
    model = run.record.config.model
    mean, longest, near = sum(heads) / len(heads), max(heads), 2 * model.ramp
    few = sum(span < near for span in heads)
    return (
        f"{few:,} of {len(heads):,} heads look back fewer than {near:,} tokens; the longest looks back {longest:,.0f} "
        f"of at most {model.max_span:,}. The mean is {mean:,.0f} tokens, {mean / model.max_span:.1%} of the maximum."
    )


def _flops(record: RunRecord) -> dict[str, float]:
    if "flops_per_token" not in record.scores:
        now = record.last("flops_per_token")
        return {COUNTED["learned_spans"]: float(now)} if now else {}
    where = record.directory / SCORES
    counted: dict[str, float] = lookup(record.scores, "flops_per_token", dict[str, float], where)
    return {words: float(counted[name]) for name, words in COUNTED.items() if counted.get(name, 0) > 0}


def _median(record: RunRecord, key: str) -> float | None:
    values = [value for _, value in record.curve(key)]
    return median(values) if values else None
