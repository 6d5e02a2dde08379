"""Decide after each validation of a run whether its search wants the rest of it."""

from dataclasses import dataclass
from pathlib import Path

from adaptive_span.config.schema import Config
from adaptive_span.reporting import units
from adaptive_span.reporting.tracking import Metrics


@dataclass(frozen=True)
class Judge:
    """What the training calls. It reaches every process of the run, so it opens no file before it is asked.

    Attributes:
        directory: Of the search.
        trial: Number of the run.
        prune_after: Trials that must have ended before.
        loss: Key of the loss among the metrics.
    """

    directory: Path
    trial: int
    prune_after: int
    loss: str

    def __call__(self, step: int, metrics: Metrics) -> bool:
        """Return whether the run should end here."""
        from adaptive_span.launch.search.study import hopeless  # Optuna, which only runs of a search need

        return hopeless(self.directory, self.trial, step, metrics[self.loss], self.prune_after)


def judge_of(config: Config) -> Judge | None:
    """Return who judges a run; None outside of a search, and where a search ends none early."""
    search = config.search
    if search.trial is None or search.prune_after is None:
        return None
    loss = f"valid/{units.of_level(config.data.level)}"
    return Judge(Path(str(config.run.dir)).parent, search.trial, search.prune_after, loss)
