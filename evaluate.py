"""Score a checkpoint: bpc on each split, spans, figures."""

import hydra
from omegaconf import DictConfig

from adaptive_span import capacity, command_line, launcher
from adaptive_span.config import EvaluateConfig
from adaptive_span.program import exit_codes
from adaptive_span.slurm import launcher as slurm_launcher


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(composed: DictConfig) -> None:
    with exit_codes(), command_line.explained(EvaluateConfig):
        config = command_line.typed(composed, EvaluateConfig)
        config.validate()
        capacity.check_processes(config.hardware)
        capacity.warn_of_slurm_keys(config.hardware)

        from adaptive_span import distributed, report  # torch, which --help need not wait for

        distributed.launch(report.evaluate, config, config.hardware)


if __name__ == "__main__":
    command_line.register("evaluate", EvaluateConfig, launcher, slurm_launcher)
    with exit_codes(), command_line.explained(EvaluateConfig):
        main()
