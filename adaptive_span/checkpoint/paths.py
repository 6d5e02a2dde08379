"""Name the files of checkpoints and of exported folders, and find them again, without torch."""

from pathlib import Path

CHECKPOINTS = "checkpoints"  # the folder in the directory of a run
BEST, BEST_AVERAGE = "best.pt", "best_average.pt"  # in that folder: of the weights, and of their moving average
WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocabulary.json"  # of an exported folder


def is_exported(folder: Path) -> bool:
    """Return whether a folder holds an exported model."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def best_path(run: Path) -> Path:
    """Return the file of the best weights of a run."""
    return run / CHECKPOINTS / BEST


def step_path(checkpoints: Path, step: int) -> Path:
    """Return the file of the training state after a step."""
    return checkpoints / f"step_{step:08d}.pt"


def steps(checkpoints: Path) -> list[Path]:
    """Return the files of a run's training states, the newest first."""
    return sorted(checkpoints.glob("step_*.pt"), reverse=True)


def last_step(directory: Path) -> int:
    """Return the step of the newest training state, as its name gives it; 0 where there is none."""
    saved = steps(directory / CHECKPOINTS)
    digits = saved[0].stem.removeprefix("step_") if saved else "0"
    return int(digits) if digits.isdecimal() else 0
