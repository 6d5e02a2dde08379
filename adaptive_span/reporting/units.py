"""Decide in which unit a loss is quoted: whatever prints, draws, logs or compares scores asks here."""

from collections.abc import Iterable

NAMES = {"bpc": "bits per character", "ppl": "perplexity", "bits_per_byte": "bits per byte"}
LABELS = {"bits_per_byte": "bits/byte", "nats_per_token": "nats/token"}  # where a name is too long
LOSSES = (*NAMES, "nats_per_token")  # all that a loss may be logged and scored in
BY_LEVEL = {"byte": "bpc", "word": "ppl", "subword": "bits_per_byte"}  # what people quote, by what a token is


def of_level(level: str) -> str:
    """Return the unit in which losses are quoted where a token is a byte, a word or a subword."""
    return BY_LEVEL[level]


def of_scores(names: Iterable[str]) -> str:
    """Return the unit in which a score is quoted that has values under these names."""
    known = set(names)
    return next((unit for unit in ("ppl", "bits_per_byte") if unit in known), "bpc")


def label(unit: str) -> str:
    """Return a unit as it stands beside a number."""
    return LABELS.get(unit, unit)
