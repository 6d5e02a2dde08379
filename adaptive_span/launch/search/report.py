"""Sum a search up: the table of its runs, the best one, and how much each key matters."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from adaptive_span.config.schema import Config
from adaptive_span.launch.search import space
from adaptive_span.reporting import sweep_table, units
from adaptive_span.reporting.run_directory import has_begun
from adaptive_span.storage import strict_json
from adaptive_span.terminal.printing import print_fields, print_line

SUMMARY = "search.json"
BEST = 0.25  # the share of the trials that importance asks how to get into
FEWEST = 4  # trials of which one is in it
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def close(study: Study, distributions: Mapping[str, BaseDistribution], directory: Path, config: Config) -> None:
    """Print what a search came to, and write it to `search.json`.

    Args:
        study: Whose trials have all ended.
        distributions: What it has chosen from, by key.
        directory: Of the search.
        config: Of one of its runs.
    """
    unit = units.of_level(config.data.level)
    trials = [_trial(trial, distributions) for trial in study.trials]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    best = min(complete, key=lambda trial: trial["loss"], default=None)
    importance = _importance(study) if len(complete) >= FEWEST else {}
    begun = [run for trial in trials if has_begun(run := directory / str(trial["trial"]))]
    if begun:
        sweep_table.summarize(begun, directory)
    number = None if best is None else best["trial"]
    summary = {"loss": f"valid/{unit}", "best": number, "importance": importance, "trials": trials}
    strict_json.write(summary, directory / SUMMARY)
    counts = [f"{sum(trial['state'] == state for trial in trials)} {state}" for state in STATES.values()]
    print_line(f"\n{len(trials)} trials: {', '.join(counts)}")
    if best is not None:
        print_line(f"the best is run {number}, with {best['loss']:.4f} {units.label(unit)} on valid:")
        print_fields({key: str(value) for key, value in best["values"].items()})
    if importance:
        print_line(f"\nhow much each key decides whether a run is among the best quarter of {len(complete)}:")
        print_fields({key: f"{share:.0%}" for key, share in importance.items()})
    else:
        print_line(f"{FEWEST} complete trials or more would show how much each key matters")
    print_line(f"\nalso in {directory / SUMMARY}")


def _trial(trial: FrozenTrial, distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    values = space.values(distributions, trial.params) if trial.params.keys() == distributions.keys() else {}
    return {"trial": trial.number, "state": STATES[trial.state], "loss": trial.value, "values": values}


def _importance(study: Study) -> dict[str, float]:
    """Return the share of each key in what sets the best quarter of the complete trials apart, the largest first.

    PED-ANOVA (arXiv 2304.10255), as Optuna has it: it needs no further package.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that few trials say little
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST))
