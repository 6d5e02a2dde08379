"""Score a checkpoint: bpc of each split, spans, figures."""

import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from adaptive_span.config.evaluate_schema import EvaluateConfig
from adaptive_span.hardware import capacity
from adaptive_span.launch import command_line, composition
from adaptive_span.terminal.program import exit_codes


def evaluate(composed: DictConfig) -> None:
    """Score what a composed configuration asks for."""
    with exit_codes(), command_line.explain_hydra_errors(EvaluateConfig):
        config = command_line.typed(composed, EvaluateConfig)
        config.validate()
        capacity.check_processes(config.hardware)
        capacity.warn_of_slurm_keys(config.hardware)

        from adaptive_span.evaluation import evaluate  # torch, which --help need not wait for
        from adaptive_span.launch import processes

        processes.launch(config.hardware, evaluate.evaluate, config)


def main(argv: Sequence[str] | None = None) -> None:
    """Score what the arguments of a command describe; those of this process where none are given."""
    with exit_codes():
        composition.run(sys.argv[1:] if argv is None else argv, evaluate, "evaluate", EvaluateConfig)
