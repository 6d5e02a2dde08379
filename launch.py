"""Compose a configuration and run it: here, in several processes of this machine, under torchrun, or on SLURM."""

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from adaptive_span import command_line, slurm
from adaptive_span.config import Config


@hydra.main(version_base="1.3", config_path="conf", config_name="launch")
def main(composed: DictConfig) -> bool:
    """Whether the run has come to its end: in a sweep, the others are none the worse for one that has not."""
    job = HydraConfig.get()
    with command_line.clear_errors(Config, goes_on=job.mode == RunMode.MULTIRUN):
        config = command_line.typed(composed, Config)
        config.validate()
        config.run.dir = str(command_line.run_directory(config, job))

        from adaptive_span import distributed, trainer  # torch, which --help need not wait for

        distributed.launch(trainer.train, config, config.hardware)
        return True
    return False


if __name__ == "__main__":
    command_line.register("launch", Config)
    slurm.register()
    with command_line.clear_errors(Config):
        main()
