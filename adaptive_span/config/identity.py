"""Tell runs apart: the same command finds its directory again, and a changed one is noticed.

A new key does not turn runs that started before it into others: at its default it does not count.
"""

import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from adaptive_span.config.data_sets import own
from adaptive_span.config.registry import decays, is_exchangeable
from adaptive_span.config.schema import Config

# What may differ between the parts of one run: none of it changes what is being trained.
MAY_CHANGE = (
    "train.steps train.finetune_steps train.batch_split train.deterministic validation.every checkpoint log run "
    "hardware tracking published sweep search numbering plugins model.attention data.file data.path data.directory "
    "data.urls data.unpacked_size data.unpacked_sha256 data.symbols data.holds data.source data.members "
    "data.vocab_size data.tokenizer"
).split()

# What counts even at its default, because it always did: directories are named after it. A key that is
# added does not belong here.
ALWAYS = (
    "model.name model.num_layers model.hidden_size model.ffn_size model.num_heads model.max_span model.block_size "
    "model.adaptive_span model.ramp model.span_init model.trim_cache model.memory_size model.layer_order "
    "model.dropout model.attention_dropout model.ffn_dropout model.embedding_dropout model.cutoffs model.division "
    "model.tied data.name data.level data.split data.size data.sha256 optimizer.name optimizer.lr optimizer.clip "
    "optimizer.momentum train.warmup_steps train.batch_size train.span_penalty train.seed train.init_from "
    "train.continue_from validation.blocks"
).split()


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one with dotted keys: {'train': {'steps': 1}} → {'train.steps': 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def identity(config: dict[str, Any], schema: type = Config) -> dict[str, Any]:
    """Return the part of a configuration that decides what is trained, flat."""
    default, flat = _defaults(schema, config), flatten(config)
    schedule = str(flat.get("train.schedule", default.get("train.schedule")))
    fixed = {"train.steps"} if decays(schedule) else set()  # a fall to the last step
    may_change = tuple(f"{key}." for key in MAY_CHANGE if key not in fixed)
    return {
        key: value
        for key, value in flat.items()
        if (not f"{key}.".startswith(may_change) or (key == "model.attention" and not is_exchangeable(value)))
        and (key in ALWAYS or key in fixed or value != default.get(key))
    }


def changes(before: dict[str, Any], now: Config) -> list[str]:
    """Return a phrase per key in which a configuration would train something else than the one `before`."""
    after, schema = now.as_dict(), type(now)
    then, today = identity(before, schema), identity(after, schema)
    all_before, all_after = (_defaults(schema, values) | flatten(values) for values in (before, after))
    missing = [_defaults(schema, values) for values in (before, after)]
    changed = [key for key in then | today if then.get(key, missing[0].get(key)) != today.get(key, missing[1].get(key))]
    return [f"{key} ({all_before.get(key)} → {all_after.get(key)})" for key in changed]


def default_run_dir(config: Config) -> str:
    """Return the directory of a run that names none: the same for the same run, so that a command resumes it."""
    data = config.data
    places = [data.file, data.path, *([data.tokenizer] if data.tokenizer else [])]
    identifying = {**identity(config.as_dict(), type(config)), "data": places}
    digest = hashlib.sha256(json.dumps(identifying, sort_keys=True).encode()).hexdigest()
    return f"runs/{data.name}-{config.model.name}-{digest[:8]}"


def _defaults(schema: type, config: dict[str, Any]) -> dict[str, Any]:
    """Return what each key means where it does not stand, flat: of a data set of the project's, what its file says."""
    data = config.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    return flatten(_of_fields(schema)) | flatten({"data": own(name)})


def _of_fields(schema: type) -> dict[str, Any]:
    hints, defaults = get_type_hints(schema), dict[str, Any]()
    for field in fields(schema):
        kind = hints[field.name]
        if isinstance(kind, type) and is_dataclass(kind):
            defaults[field.name] = _of_fields(kind)
        else:
            defaults[field.name] = field.default_factory() if callable(field.default_factory) else field.default
    return defaults
