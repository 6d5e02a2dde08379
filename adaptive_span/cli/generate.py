"""Let a checkpoint write text."""

import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from adaptive_span.config.generate_schema import GenerateConfig
from adaptive_span.launch import command_line, composition
from adaptive_span.terminal.program import exit_codes


def generate(composed: DictConfig) -> None:
    """Write what a composed configuration asks for."""
    with exit_codes(), command_line.explain_hydra_errors(GenerateConfig):
        config = command_line.typed(composed, GenerateConfig)
        config.validate()

        from adaptive_span.generation import generate  # torch, which --help need not wait for

        generate.generate(config)


def main(argv: Sequence[str] | None = None) -> None:
    """Write what the arguments of a command describe; those of this process where none are given."""
    with exit_codes():
        composition.run(sys.argv[1:] if argv is None else argv, generate, "generate", GenerateConfig)
