"""Name the runs of a sweep by what sets them apart, for tables, pages and trackers."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from adaptive_span.config.schema import Config
from adaptive_span.terminal.plain_text import masked


def give_names(configs: list[Config], job_overrides: Sequence[Sequence[str]], directory: Path) -> None:
    """Set `run.name` of each run of a sweep, and `run.group` unless one is given.

    Args:
        configs: Of the runs. One alone is no sweep, and keeps its name; a search has named its own.
        job_overrides: The arguments of each.
        directory: Of the sweep.
    """
    if len(configs) == 1 or configs[0].search.trial is not None:
        return
    for config, name in zip(configs, varied(job_overrides), strict=True):
        config.run.name = masked(f"{config.run.name} {name}" if config.run.name else name)
        config.run.group = config.run.group or directory.name


def varied(job_overrides: Sequence[Sequence[str]]) -> list[str]:
    """Return for each run the settings that are not the same in all, like `seed=1 max_span=64`.

    A key loses its group where it is clear without.
    """
    runs = [dict(override.lstrip("+").partition("=")[::2] for override in overrides) for overrides in job_overrides]
    keys = [key for key in dict.fromkeys(chain(*runs)) if len({run.get(key) for run in runs}) > 1]
    short = short_names(keys)
    return [" ".join(f"{short[key]}={run[key].strip(chr(39))}" for key in keys if key in run) for run in runs]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return each key without its group where it is clear without."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}
