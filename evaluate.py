"""Score a checkpoint: bpc on each split, spans, figures."""

from omegaconf import DictConfig

from adaptive_span.config.schema import EvaluateConfig
from adaptive_span.hardware import capacity
from adaptive_span.launch import command_line, composition
from adaptive_span.terminal.program import exit_codes


def main(composed: DictConfig) -> None:
    with exit_codes(), command_line.explained(EvaluateConfig):
        config = command_line.typed(composed, EvaluateConfig)
        config.validate()
        capacity.check_processes(config.hardware)
        capacity.warn_of_slurm_keys(config.hardware)

        from adaptive_span.evaluation import evaluate
        from adaptive_span.launch import processes  # torch, which --help need not wait for

        processes.launch(evaluate.evaluate, config, config.hardware)


if __name__ == "__main__":
    with exit_codes():
        composition.run(main, "evaluate", EvaluateConfig)
