"""Compose a configuration and run it: here, in several processes of this machine, under torchrun, or on SLURM."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from adaptive_span import command_line, slurm
from adaptive_span.config import Config, default_run_dir


@hydra.main(version_base="1.3", config_path="conf", config_name="launch")
def main(composed: DictConfig) -> None:
    with command_line.clear_errors(Config):
        config = command_line.typed(composed, Config)
        config.validate()
        config.run.dir = str(run_directory(config))

        from adaptive_span import distributed, trainer  # torch, which --help need not wait for

        distributed.launch(trainer.train, config, config.hardware)


def run_directory(config: Config) -> Path:
    """Fixed here, once, for all processes; each job of a multirun has its own below the one asked for."""
    directory = Path(config.run.dir or default_run_dir(config))
    job = HydraConfig.get()
    return directory / str(job.job.num) if job.mode == RunMode.MULTIRUN else directory


if __name__ == "__main__":
    command_line.register("launch", Config)
    slurm.register()
    with command_line.clear_errors(Config):
        main()
