"""What makes a run the run that it is: the same command finds its directory again, and a changed one is noticed."""

import hashlib
import json
from typing import Any

from adaptive_span.config import Config

# What may differ between the parts of one run: none of it changes what is being trained.
MAY_CHANGE = (
    "train.steps train.finetune_steps train.batch_split validation.every checkpoint log run hardware tracking "
    "published sweep model.attention data.file data.path data.directory data.urls"
).split()


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'train': {'steps': 1}} → {'train.steps': 1}"""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The flat part of a configuration that makes a run the run that it is."""
    may_change = tuple(f"{key}." for key in MAY_CHANGE)
    return {key: value for key, value in flatten(config).items() if not f"{key}.".startswith(may_change)}


def default_run_dir(config: Config) -> str:
    """The same directory for the same run, so that the same command goes on with it."""
    text = json.dumps({**identity(config.as_dict()), "data": [config.data.file, config.data.path]}, sort_keys=True)
    return f"runs/{config.data.name}-{config.model.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
