"""Decide which runs a sweep has: Hydra's sweeper."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins import sweeper as plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from adaptive_span.config.overrides import end_with_steps, quoted
from adaptive_span.errors import UserError


class Sweeper(plugins.Sweeper):
    """Run every combination of values, as Hydra's own does; but those of `pairs` vary together, and no file is left."""

    __module__ = "hydra_plugins.adaptive_span_sweeper"  # where Hydra looks for `_target_`

    def __init__(self, max_batch_size: int | None, params: Any):
        values: Any = {} if params is None else OmegaConf.to_container(OmegaConf.create(params))
        self.pairs, self.ranges = values.pop("pairs", {}), values.pop("ranges", {})
        self.params = values

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the parser and the launcher."""
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the runs."""
        if self.ranges:
            raise UserError("the ranges of a sweep's file are for a search; give search=optuna too")
        overrides = self.parser.parse_overrides([*self.given(), *arguments])
        return self.launcher.launch(self._jobs(overrides), initial_job_idx=0)

    def given(self) -> list[str]:
        """Return what the sweep's file sets, as arguments of a command."""
        return [f"{key}={values}" for key, values in self.params.items()]

    def _jobs(self, overrides: list[Override]) -> list[list[str]]:
        """Return the arguments of each run: every combination of the other values, with each of the pairs."""
        pairs = _checked(self.pairs)
        others = [override for override in overrides if override.key_or_group not in pairs]
        for key, override in {each.key_or_group: each for each in overrides if each.key_or_group in pairs}.items():
            if override.is_sweep_override():
                pairs[key] = list(override.sweep_string_iterator())
            else:  # one value for all
                del pairs[key]
                others.append(override)
        counts = {key: len(values) for key, values in pairs.items()}
        if len(set(counts.values())) > 1:
            lengths = ", ".join(f"{key} has {count}" for key, count in counts.items())
            raise UserError(f"the pairs of a sweep need as many values each, but {lengths}; give each key as many")
        paired = zip(*([f"{key}={value}" for value in values] for key, values in pairs.items()), strict=True)
        [jobs] = BasicSweeper.split_arguments(others, None)
        return [end_with_steps([*job, *pair]) for job, pair in itertools.product(jobs, list(paired) or [()])]


def _checked(pairs: Any) -> dict[str, Sequence[str]]:
    """Return the values of each key of `pairs`, as arguments of a command."""
    if not isinstance(pairs, dict) or not all(isinstance(values, list) and values for values in pairs.values()):
        raise UserError(f"pairs={pairs} of a sweep must hold a list for each key, like {{train.seed: [7, 8]}}")
    return {key: [quoted(v) if isinstance(v, str) else json.dumps(v) for v in pairs[key]] for key in pairs}
