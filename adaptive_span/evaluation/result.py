"""What came of a training, and how it is shown at the end of a command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_span.config.overrides import pasted, setting
from adaptive_span.config.registry import decays
from adaptive_span.config.schema import Config
from adaptive_span.evaluation import report
from adaptive_span.reporting.run_directory import CONFIG, report_finished
from adaptive_span.reporting.scores import AVERAGE
from adaptive_span.reporting.tracking import METRICS
from adaptive_span.terminal.printing import print_line, print_places


@dataclass(frozen=True)
class Result:
    """What came of a training.

    Attributes:
        directory: Of the run.
        step: The last update.
        evaluation: What `evaluation.json` holds.
        figure: The spans, drawn; None where the run was finished before.
        tracker: Where the tracker shows the run, if it says so.
        upload: Command that uploads what the tracker keeps in a folder.
    """

    directory: Path
    step: int
    evaluation: dict[str, Any]
    figure: Path | None = None
    tracker: str | None = None
    upload: str | None = None

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Scores of the splits, by name: `bpc` (not of subwords), `nats` (of all tokens), `tokens`, and of words `ppl`.

        Of subwords `bits_per_byte`, `nats_per_token` and `bytes_per_token`.
        """
        scores: dict[str, dict[str, float]] = self.evaluation["splits"]
        return scores


def print_result(result: Result, config: Config, among_others: bool = False) -> None:
    """Print the scores, the spans, what they cost, where everything is, and commands for what comes next.

    Args:
        result: What came of the training.
        config: Of the run.
        among_others: Whether the run is one of several: a table will show them together, and two lines are enough.
    """
    if result.figure is None:
        report_finished(result.directory, result.step, config)
        return
    if among_others:
        name = "" if config.run.name is None else f" ({config.run.name})"
        print_line(f"\n{result.directory}{name}:\n{report.in_a_line(result.evaluation)}\n")
        return
    report.print_tables(result.evaluation, config, config.data.level)
    directory, averaged = result.directory, result.evaluation.get(AVERAGE)
    print_places(
        {
            "run": directory,
            "weights": f"{result.evaluation['checkpoint']} (step {result.evaluation['step']})",
            "average": averaged and f"{averaged['checkpoint']} (step {averaged['step']})",
            "metrics": directory / METRICS,
            "figure": result.figure,
            config.tracking.name: result.tracker,
            "upload": result.upload,
            "train on": pasted("train", "--config", str(directory / CONFIG), *_longer(config, result)),
            "evaluate": pasted("evaluate", setting("run", str(directory))),
        }
    )


def _longer(config: Config, result: Result) -> list[str]:
    """Return the settings that train for as many steps again, and end with the same phase.

    Where the rate has fallen to the end of its schedule, that is a new run from the weights.
    """
    train = config.train
    if decays(train.schedule):
        settings = [setting("train.init_from", result.evaluation["checkpoint"])]
    else:
        settings = [f"train.steps={train.total_steps + train.steps}"]
        settings += [f"train.finetune_steps={train.finetune_steps}"] if train.finetune_steps else []
    return [*settings, *([f"plugins=[{','.join(config.plugins)}]"] if config.plugins else [])]
