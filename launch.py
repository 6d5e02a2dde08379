"""Compose a configuration and run it: here, in several processes of this machine, under torchrun, or on SLURM."""

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from adaptive_span.config.schema import Config
from adaptive_span.launch import command_line, composition, running
from adaptive_span.terminal.program import exit_codes


def main(composed: DictConfig) -> None:
    with exit_codes(), command_line.explained(Config):
        config = command_line.typed(composed, Config)
        running.run(config, among_others=HydraConfig.get().mode == RunMode.MULTIRUN)


if __name__ == "__main__":
    with exit_codes():
        composition.run(main, "launch", Config)
