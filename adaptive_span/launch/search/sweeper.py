"""Read what a search is to find, from a sweep's file and the command: Hydra's sweeper for `search=optuna`."""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from adaptive_span.errors import UserError
from adaptive_span.launch import sweep_jobs


class Searcher(sweep_jobs.Sweeper):
    """Run one round of trials after the other, each of values that the rounds before it suggest."""

    __module__ = "hydra_plugins.adaptive_span_searcher"  # where Hydra looks for `_target_`

    def sweep(self, arguments: list[str]) -> Any:
        """Search until there are `search.trials` trials.

        A key of the ranges that the command gives is fixed, and searched no more.
        """
        name = self.launcher.config.hydra.runtime.choices.get("sweep")
        overrides = self.parser.parse_overrides([*self.given(), *arguments])
        for override in overrides:
            if override.is_sweep_override():
                raise UserError(
                    f"{override.input_line} gives several values, but a search chooses by itself: give one, or write "
                    f"the values as a list below `ranges` of the sweep's file"
                )
        if self.pairs:
            raise UserError(
                f"sweep={name} holds pairs, which vary together; a search knows ranges alone: take them out"
            )
        fixed = {override.key_or_group for override in overrides}
        ranges = self.ranges
        if isinstance(ranges, dict):
            ranges = {key: values for key, values in ranges.items() if key not in fixed}
        if not ranges:
            raise UserError(
                f"search=optuna finds no ranges in sweep={name or 'null'} that the command leaves open; give a sweep "
                f"whose file holds some, like ranges: {{optimizer.lr: {{low: 0.01, high: 0.1}}, model.ramp: [16, 32]}}"
            )
        try:
            from adaptive_span.launch.search.rounds import Search  # Optuna, which other commands need not have
        except ModuleNotFoundError as missing:
            package = str(missing.name).partition(".")[0]
            raise UserError(f"there is no {package} here; pip install 'adaptive-span[search]' brings it") from None
        [[settings]] = BasicSweeper.split_arguments(overrides, None)
        Search(self.launcher, ranges, settings).run()
