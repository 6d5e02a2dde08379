"""`evaluation.json`: what a model scored on whole splits.

At the top stands the exact score of a run's weights on the run's own data, and nothing else; `others` holds scores on
other texts and by the published protocol, each under a name of its own. Imports no torch.
"""

from pathlib import Path
from typing import Any

from adaptive_span.reporting.tracking import SCORES
from adaptive_span.storage import stored, strict_json
from adaptive_span.storage.writing import explain_disk_errors

OTHERS = "others"
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
    return scores


def exact_score(directory: Path) -> Scores | None:
    """Return the exact score of a run on its own data, or None where there is none."""
    scores = read(directory)
    return scores if scores.get("protocol") == "exact" and "splits" in scores else None


def write(score: Scores, directory: Path) -> None:
    """Write the exact score of a run on its own data, and keep the others."""
    others = read(directory).get(OTHERS)
    strict_json.write(score | ({OTHERS: others} if others else {}), directory / SCORES)


def write_other(score: Scores, name: str, directory: Path) -> str:
    """Write a score of another kind beside the others, and return its name: that of a different text is kept."""
    scores = read(directory)
    others = scores.get(OTHERS, {})
    if name in others and others[name].get("corpus") != score["corpus"]:
        name = f"{name} ({score['corpus'][:8]})"
    strict_json.write(scores | {OTHERS: others | {name: score}}, directory / SCORES)
    return name


def forget(directory: Path) -> None:
    """Remove the score of a run whose weights change; those of other kinds say which step they belong to."""
    others = read(directory).get(OTHERS)
    if others:
        strict_json.write({OTHERS: others}, directory / SCORES)
    else:
        with explain_disk_errors(directory / SCORES):
            (directory / SCORES).unlink(missing_ok=True)
