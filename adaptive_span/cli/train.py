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
    """Train each configuration that Hydra composes; remember the command that asked for them."""

    command: list[str]

    def __call__(self, composed: DictConfig) -> None:
        with exit_codes(), command_line.explain_hydra_errors(Config):
            config = command_line.typed(composed, Config)
            running.train(config, self.command, among_others=HydraConfig.get().mode == RunMode.MULTIRUN)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what the arguments of a command describe; those of this process where none are given."""
    with exit_codes():
        composition.run(sys.argv[1:] if argv is None else argv, Train(list(sys.argv)), "launch", Config)
