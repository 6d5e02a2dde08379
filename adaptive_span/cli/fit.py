"""Learn how far the heads of a causal language model of transformers need to look."""

import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from adaptive_span.config.fit_schema import FitConfig
from adaptive_span.errors import UserError
from adaptive_span.launch import command_line, composition
from adaptive_span.terminal.program import exit_codes


def fit(composed: DictConfig) -> None:
    """Fit what a composed configuration asks for."""
    with exit_codes(), command_line.explain_hydra_errors(FitConfig):
        config = command_line.typed(composed, FitConfig)
        config.validate()
        try:
            from adaptive_span.hf import run  # torch and transformers, which --help need not wait for
        except ModuleNotFoundError as missing:
            if missing.name != "transformers":
                raise
            raise UserError("fit needs transformers; pip install 'adaptive-span[hf]' brings it") from None

        run.fit(config)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit what the arguments of a command describe; those of this process where none are given."""
    with exit_codes():
        composition.run(sys.argv[1:] if argv is None else argv, fit, "fit", FitConfig)
