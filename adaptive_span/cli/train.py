"""Compose a configuration and train it: here, in several processes of this machine, under torchrun, or on SLURM."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from adaptive_span.config.schema import Config
from adaptive_span.launch import command_line, composition, running
from adaptive_span.terminal.program import exit_codes


@dataclass(frozen=True)
class Train:
    """What Hydra calls with each composed configuration; it knows the command that asked for them."""

    command: list[str]

    def __call__(self, composed: DictConfig) -> None:
        with exit_codes(), command_line.explained(Config):
            config = command_line.typed(composed, Config)
            running.train(config, self.command, among_others=HydraConfig.get().mode == RunMode.MULTIRUN)


def main(words: Sequence[str] | None = None) -> None:
    """Train what the words of a command say; those that this process was started with where none are given."""
    with exit_codes():
        composition.run(sys.argv[1:] if words is None else words, Train(list(sys.argv)), "launch", Config)
