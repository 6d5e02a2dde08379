"""Estimate what a training needs on a GPU that need not be here: memory, time and hours.

    adaptive-span estimate gpu=h100 data=enwik8 model=large

The other arguments are those of `adaptive-span train`.
"""

import argparse
from collections.abc import Sequence

from adaptive_span.launch import composition


def main(argv: Sequence[str]) -> None:
    """Print the estimates.

    Raises:
        UserError: Nothing is known of the GPU, or the configuration is wrong.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("adaptive-span estimate", description=__doc__, formatter_class=raw)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="gpu=NAME, and settings of the training")
    given = parser.parse_intermixed_args(argv).settings

    from adaptive_span.benchmark import estimate  # torch, which --help need not wait for

    card = estimate.card_of([word.removeprefix("gpu=") for word in given if word.startswith("gpu=")])
    config = composition.compose([word for word in given if not word.startswith("gpu=")])
    if config.hardware.precision == "auto":
        config.hardware.precision = "bf16"  # which all of these GPUs have in hardware
    estimate.print_estimates(config, card)
