"""Read what a run has left in its directory: for tables, figures and pages. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from adaptive_span.config.checks import MISSING
from adaptive_span.config.data_sets import completed
from adaptive_span.config.identity import flatten
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.reporting import scores, units
from adaptive_span.reporting.run_directory import CONFIG, ENVIRONMENT, FAILURE, TOKEN_LOSSES, has_begun, pruned, reason
from adaptive_span.reporting.tracking import METRICS, SCORES, SPANS, Spans, logged
from adaptive_span.storage.stored import from_dict, lookup, read_json, read_lines, read_yaml

T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """With what a run was begun or resumed: a line of `environment.jsonl`."""

    started: str
    step: int
    command: str
    commit: str | None
    changed: bool | None
    python: str
    packages: dict[str, str]
    device: str
    processes: int
    gpus: list[str]
    cuda: str | None
    cpu: str
    system: str


@dataclass(frozen=True)
class TokenLosses:
    """The losses of a short text.

    Attributes:
        split: Where the text is from.
        protocol: How it was scored.
        step: Updates that the weights had seen.
        level: What a token is: byte, word or subword.
        texts: Words, whole characters, or the text of one or more subwords.
        nats: For each of them the losses of its tokens.
    """

    split: str
    protocol: str
    step: int
    level: str
    texts: list[str]
    nats: list[list[float]]


@dataclass(frozen=True)
class RunRecord:
    """What a run has left so far. It may still be training, or have failed.

    Attributes:
        directory: Of the run.
        config: What it was begun with.
        settings: The same, flat: `train.steps` → 1000.
        lines: Of `metrics.jsonl`: `step`, numbers by name, and `spans` unless it is an old run.
        scores: What `evaluation.json` holds; {} where there is none.
    """

    directory: Path
    config: Config
    settings: dict[str, Any]
    lines: list[dict[str, Any]]
    scores: scores.Scores

    @property
    def unit(self) -> str:
        """The unit of its losses: bpc of bytes, ppl (perplexity) of words, bits_per_byte of subwords."""
        return units.of_level(self.config.data.level)

    @property
    def step(self) -> int:
        """The last step that was logged, 0 where there is none."""
        step: int = self.lines[-1]["step"] if self.lines else 0
        return step

    @property
    def failure(self) -> str | None:
        """Why it failed, in one line."""
        return reason(self.directory)

    @property
    def pruned(self) -> str | None:
        """After which step its search has ended it early, in words; None where it has not."""
        return pruned(self.directory)

    @cached_property
    def exact(self) -> dict[str, dict[str, float]]:
        """Exact scores of its splits on its own data, as `Result.scores` has them."""
        if self.scores.get("protocol") != "exact":
            return {}
        splits: dict[str, dict[str, float]] = lookup(
            self.scores, "splits", dict[str, dict[str, float]], self.directory / SCORES
        )
        for values in splits.values():
            lookup(values, self.unit, float, self.directory / SCORES)
        return splits

    def curve(self, key: str) -> list[tuple[int, float]]:
        """Return step and value wherever a number was logged."""
        return [(line["step"], line[key]) for line in self.lines if key in line]

    def last(self, key: str) -> float | None:
        """Return the last value of a logged number, None where there is none."""
        points = self.curve(key)
        return points[-1][1] if points else None

    def score(self, split: str) -> float | None:
        """Return the exact score of a split; while there is none, of valid the last validation, else None."""
        if split in self.exact:
            return self.exact[split][self.unit]
        return self.last(f"{split}/{self.unit}")

    def seconds(self) -> float:
        """Return how long its steps have taken, validations and saving left aside."""
        tokens_per_step, before, total = self.config.train.batch_size * self.config.model.block_size, 0, 0.0
        for step, speed in self.curve("tokens_per_second"):
            total += float(step - before) * tokens_per_step / speed if speed else 0.0
            before = step
        return total

    def spans_over_time(self) -> list[tuple[int, Spans]]:
        """Return each logged step and the effective span of every head there, in tokens; [] of an old run."""
        return [(line["step"], line[SPANS]) for line in self.lines if SPANS in line]

    def spans(self) -> Spans | None:
        """Return the effective span of every head in tokens: as scored, else as last logged; None where neither is."""
        if "spans" in self.scores:
            scored: Spans = lookup(self.scores, "spans", Spans, self.directory / SCORES)
            return scored
        over_time = self.spans_over_time()
        return over_time[-1][1] if over_time else None

    def starts(self) -> list[Start]:
        """Return with what it was begun and resumed; [] of a run that did not keep it."""
        path = self.directory / ENVIRONMENT
        return [_typed(line, Start, path) for line in read_lines(path)] if path.exists() else []

    def token_losses(self) -> TokenLosses | None:
        """Return the losses of a short text as last scored, or None where they were not kept."""
        path = self.directory / TOKEN_LOSSES
        return _typed(read_json(path, dict), TokenLosses, path) if path.exists() else None


def read(directory: Path) -> RunRecord:
    """Read one run.

    Raises:
        UserError: The directory holds no run, or a file of it is damaged.
    """
    path = directory / CONFIG
    if not has_begun(directory):
        raise UserError(f"{directory} holds no run that has begun: it has no {METRICS}; give the directory of a run")
    config = from_dict(completed(read_yaml(path)), Config, path)
    settings = flatten(config.as_dict())
    if MISSING in settings.values():
        raise UserError(f"{path} lacks a value for {next(key for key in settings if settings[key] == MISSING)}")
    lines = logged(directory / METRICS) if (directory / METRICS).exists() else []
    return RunRecord(directory, config, settings, lines, scores.read(directory))


def _typed(values: dict[str, Any], kind: type[T], path: Path) -> T:
    """Return a line, or a file, with every key that it must have; others of a newer version are left out."""
    return kind(**{key: lookup(values, key, hint, path) for key, hint in get_type_hints(kind).items()})


def directories_below(folder: Path) -> list[Path]:
    """Return the directories of all runs in or below a folder that have begun, or failed."""
    return sorted({path.parent for name in (METRICS, FAILURE) for path in folder.glob(f"**/{name}")})


def varied_settings(records: Sequence[RunRecord]) -> Iterator[str]:
    """Yield the settings in which runs differ, but where they are kept and tracked."""
    for key in records[0].settings:
        if (
            not key.startswith(("run.", "tracking.", "sweep.", "search."))
            and len({str(record.settings.get(key)) for record in records}) > 1
        ):
            yield key
