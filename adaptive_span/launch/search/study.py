"""Keep what Optuna knows of a search in one file of its directory, to which the runs on all machines add."""

import warnings
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import MedianPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import Trial

from adaptive_span.errors import UserError, first_line

JOURNAL = "search.journal"
NAME = "search"  # of the only study in it

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", ExperimentalWarning)  # of what is no experiment any more in Optuna 5


def open_study(directory: Path) -> Study:
    """Return the study of a search, a new one where there is none.

    Raises:
        UserError: Its file is damaged.
    """
    path = str(directory.absolute() / JOURNAL)
    try:
        # Its other lock is a link, which NFS before version 3 needs, and which a directory that is moved would break.
        storage = JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
        return optuna.create_study(study_name=NAME, storage=storage, load_if_exists=True, direction="minimize")
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); give another run.dir") from error


def hopeless(directory: Path, number: int, step: int, loss: float, prune_after: int) -> bool:
    """Record a validation of a trial, and return whether it does worse than the median of the others at that step.

    Args:
        directory: Of the search.
        number: Of the trial.
        step: Updates so far.
        loss: On the validation part.
        prune_after: How many trials must have ended before.
    """
    study = open_study(directory)
    study.pruner = MedianPruner(n_startup_trials=prune_after)
    trial = Trial(study, study.trials[number]._trial_id)
    if step not in study.trials[number].intermediate_values:  # a run that was killed validates there once more
        trial.report(loss, step)
    return trial.should_prune()
