"""`evaluation.json`: what a model scored on whole splits.

At the top stands the exact score of a run's weights on the run's own data. `average` holds the same of the moving
average of its weights, where it keeps one. `others` holds scores on other texts, by the published protocol and with
spans cut, each under a name of its own. Imports no torch.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_span.reporting import units
from adaptive_span.reporting.tracking import SCORES, Spans
from adaptive_span.storage import stored, strict_json
from adaptive_span.storage.writing import explain_disk_errors

AVERAGE, OTHERS = "average", "others"
OWN = "exact, of its own text"  # the name of what stands at the top
Scores = dict[str, Any]


def read(directory: Path) -> Scores:
    """Return all scores in a directory; {} where there are none.

    Raises:
        UserError: The file is damaged.
    """
    path = directory / SCORES
    if not path.exists():
        return {}
    scores = stored.read_json(path, dict)
    stored.lookup({OTHERS: {}} | scores, OTHERS, dict[str, dict[str, Any]], path)
    stored.lookup({AVERAGE: {}} | scores, AVERAGE, dict[str, Any], path)
    return scores


def exact_score(directory: Path) -> Scores | None:
    """Return the exact score of a run on its own data, or None where there is none."""
    scores = read(directory)
    return scores if scores.get("protocol") == "exact" and "splits" in scores else None


def write(score: Scores, directory: Path) -> None:
    """Write the exact score of a run on its own data, and keep the others, and that of the average if none comes."""
    kept = {key: value for key, value in read(directory).items() if key in (AVERAGE, OTHERS)}
    strict_json.write(score | {key: value for key, value in kept.items() if key not in score}, directory / SCORES)


def write_other(score: Scores, name: str, directory: Path) -> str:
    """Write a score of another kind beside the others, and return its name: that of a different text is kept."""
    scores = read(directory)
    others = scores.get(OTHERS, {})
    if name in others and others[name].get("corpus") != score["corpus"]:
        name = f"{name} ({score['corpus'][:8]})"
    strict_json.write(scores | {OTHERS: others | {name: score}}, directory / SCORES)
    return name


@dataclass(frozen=True)
class Summary:
    """One score of an `evaluation.json` in a few numbers.

    Attributes:
        name: Text, protocol and cut.
        step: Of the weights.
        unit: As `units.of_level` has it.
        values: By split, in that unit.
        mean_span: Over all heads, in tokens.
    """

    name: str
    step: int
    unit: str
    values: dict[str, float]
    mean_span: float


def summaries(directory: Path) -> list[Summary]:
    """Return all scores in a directory, that of the run's own data first, then that of its averaged weights.

    Raises:
        UserError: The file is damaged.
    """
    scores = read(directory)
    own = {OWN: scores} if "splits" in scores else {}
    if AVERAGE in scores:
        own[f"{OWN}, averaged weights"] = scores[AVERAGE]
    return [_summary(name, score, directory / SCORES) for name, score in (own | scores.get(OTHERS, {})).items()]


def _summary(name: str, score: Scores, path: Path) -> Summary:
    where = f"the score '{name}' in {path}"
    splits = stored.lookup(score, "splits", dict[str, dict[str, float]], where)
    heads = [span for layer in stored.lookup(score, "spans", Spans, where) for span in layer]
    unit = units.of_scores({each for values in splits.values() for each in values})
    values = {split: stored.lookup(values, unit, float, where) for split, values in splits.items()}
    return Summary(name, stored.lookup(score, "step", int, where), unit, values, sum(heads) / max(1, len(heads)))


def file_name(name: str) -> str:
    """Return the name of a score as part of a file's name: as it is where it can be, else its end and a checksum."""
    plain = name.replace(", ", "--").replace(" ", "_")
    if re.fullmatch(r"[\w.-]{1,80}", plain):
        return plain
    readable, digest = re.sub(r"[^\w.-]+", "_", name)[-60:], hashlib.sha256(name.encode()).hexdigest()
    return f"{readable}-{digest[:8]}"


def forget(directory: Path) -> None:
    """Remove the score of a run whose weights change; those of other kinds say which step they belong to."""
    others = read(directory).get(OTHERS)
    if others:
        strict_json.write({OTHERS: others}, directory / SCORES)
    else:
        with explain_disk_errors(directory / SCORES):
            (directory / SCORES).unlink(missing_ok=True)
