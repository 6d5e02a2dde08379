"""Compose a configuration and run it: here, in several processes of this machine, under torchrun, or on SLURM."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from adaptive_span import capacity, command_line, launcher, run_directory
from adaptive_span.config import Config
from adaptive_span.identity import default_run_dir
from adaptive_span.program import exit_codes
from adaptive_span.slurm import launcher as slurm_launcher


@hydra.main(version_base="1.3", config_path="conf", config_name="launch")
def main(composed: DictConfig) -> None:
    with exit_codes(), command_line.explained(Config):
        config = command_line.typed(composed, Config)
        config.validate()
        capacity.check_here(config)
        capacity.warn_of_slurm_keys(config.hardware)
        config.run.dir = config.run.dir or default_run_dir(config)

        from adaptive_span import distributed, trainer  # torch, which --help need not wait for

        run_directory.forget_failure(Path(config.run.dir))
        with (
            run_directory.failure_kept(config, among_others=HydraConfig.get().mode == RunMode.MULTIRUN),
            run_directory.resumable(Path(config.run.dir)),
        ):
            distributed.launch(trainer.train, config, config.hardware)


if __name__ == "__main__":
    command_line.register("launch", Config, launcher, slurm_launcher)
    with exit_codes(), command_line.explained(Config):
        main()
