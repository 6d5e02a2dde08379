"""Measure what a model costs on this machine.

- attention: attention of all layers with its projections, or of one --layer, forward and backward.
- step: forward, backward and update of a whole model, beside the same without attention.
- evaluate: scoring a text, from kept keys and values, beside projecting the cache again for every block.
- generate: predicting a token, with each head's own span, its layer's longest, and the maximum.
- spans: a token of a transformers model after a context, with its whole cache and with what spans keep of it.
- fit: a step of fitting spans to a transformers model, beside the model's own forward and backward pass.
- growth: a step while the spans grow from 0 to the maximum; --figure draws it.
- loop: the whole training loop against bare forward + backward + update.
- count: launches, bytes, operations and memory of a step on a GPU, which need not be here.
- processes: updates of 2 processes against 1, with as much work for each.
- data: numbering 100 MB of bytes.

Implementations are timed interleaved, in one process; figures are medians. Memory is what one run adds at its peak to
a process of its own. All but generate, spans, fit, loop, processes and data need torch, numpy and PyYAML alone; fused
attention and count need triton too, spans and fit need transformers.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from adaptive_span.benchmark.cost_model import CARDS
from adaptive_span.benchmark.names import KINDS, MODELS, PROFILES, PROJECT, TRANSFORMERS
from adaptive_span.config.checks import Range
from adaptive_span.config.places import CONF
from adaptive_span.config.registry import ATTENTIONS

USUAL = {"model": "base", "batch_size": 2, "dropout": 0.0, "dtype": "fp32"}
LEAST_CONTEXT, MOST_CONTEXT = 64, 8192  # the shortest spans and sinks, and what SmolLM2 takes, in tokens
USUAL_COUNT = {"model": "large", "batch_size": 64, "dropout": 0.4, "dtype": "bf16"}  # of `count`: as it is trained


def main(argv: Sequence[str]) -> None:
    """Measure what is asked for, and print a table of it."""
    arguments = parse(argv)

    from adaptive_span.benchmark import measure  # torch, which --help need not wait for

    measure.measure(arguments)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return what the arguments ask for, checked; exit with 2 where that cannot be."""
    parser = argparse.ArgumentParser(
        "adaptive-span benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=(*KINDS, "generate", *TRANSFORMERS, "growth", "count", *PROJECT))
    parser.add_argument("--model", choices=MODELS, help="base, of count large")
    parser.add_argument("--batch-size", "--rows", type=int, help="rows of each process; 2, of count 64")
    parser.add_argument("--gpu", default="h200", choices=CARDS, help="of `count`: for which to compute times; h200")
    parser.add_argument("--split", type=int, default=1, help="of `count`: slices of the rows; 1")
    parser.add_argument("--profile", default="paper", choices=PROFILES, help="the heads' spans; paper")
    parser.add_argument("--layer", type=int, help="of `attention`, counted from 1; all of them")
    parser.add_argument(
        "--tokens", type=int, help="of `generate`: predict so many, compare the first and last thousand"
    )
    parser.add_argument("--context", nargs="+", type=int, help="tokens: of `spans` 4000, of `fit` 512 1024 2048")
    parser.add_argument("--dropout", type=float, help="0, of count 0.4")
    parser.add_argument("--attention", nargs="+", choices=[*ATTENTIONS][1:], help="to compare; all that run here")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="of matrix products; fp32, of count bf16")
    parser.add_argument("--repeats", type=int, default=5, help="5")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--no-memory", action="store_true", help="leave out the column that needs a process of its own")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--figure", type=Path, help="of `growth`: draw it there")
    arguments = parser.parse_args(argv)
    usual = USUAL_COUNT if arguments.what == "count" else USUAL
    for flag, value in usual.items():
        if getattr(arguments, flag) is None:
            setattr(arguments, flag, value)
    layers = yaml.safe_load((CONF / "model" / f"{arguments.model}.yaml").read_text("utf-8"))["num_layers"]
    if arguments.layer is not None and not 1 <= arguments.layer <= layers:
        parser.error(f"--layer {arguments.layer} is not one of the {layers} of --model {arguments.model}")
    for flag, most in (("repeats", 10**6), ("batch_size", 2**31 - 1), ("split", 2**31 - 1)):
        if problem := Range(1, most)(getattr(arguments, flag)):
            parser.error(f"--{flag.replace('_', '-')} {getattr(arguments, flag)} {problem}")
    if not 0 <= arguments.dropout < 1:
        parser.error(f"--dropout {arguments.dropout} must be at least 0 and below 1")
    if arguments.tokens is not None and arguments.what != "generate":
        parser.error(f"--tokens is for generate, not for {arguments.what}")
    if arguments.tokens is not None and (problem := Range(2, 10**9)(arguments.tokens)):
        parser.error(f"--tokens {arguments.tokens} {problem}")
    if arguments.context is None:
        arguments.context = TRANSFORMERS.get(arguments.what, [])
    elif arguments.what not in TRANSFORMERS:
        parser.error(f"--context is for {' and '.join(TRANSFORMERS)}, not for {arguments.what}")
    for context in arguments.context:
        if problem := Range(LEAST_CONTEXT, MOST_CONTEXT)(context):
            parser.error(f"--context {context} {problem}")
    for path in (arguments.json, arguments.figure):
        if path is not None and not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent} for {path}")
    if arguments.batch_size % arguments.split:
        parser.error(f"--split {arguments.split} does not divide --batch-size {arguments.batch_size}")
    for flag in ("split", "gpu"):
        if arguments.what != "count" and getattr(arguments, flag) != parser.get_default(flag):
            parser.error(f"--{flag} is for count, not for {arguments.what}")
    if arguments.layer is not None and arguments.what != "attention":
        parser.error(f"--layer is for attention, not for {arguments.what}")
    fixed: dict[str, tuple[str, ...]] = {
        "generate": ("dropout", "attention", "dtype"),
        "spans": ("model", "profile", "dropout", "attention", "dtype"),
        "fit": ("model", "profile", "dropout", "attention"),
    }
    fixed |= dict.fromkeys(PROJECT, ("profile", "dropout", "attention", "dtype"))
    for flag in fixed.get(arguments.what, ()):
        if getattr(arguments, flag) != USUAL.get(flag, parser.get_default(flag)):
            parser.error(f"--{flag} does not go with {arguments.what}")
    if arguments.figure and (arguments.what != "growth" or arguments.no_memory):
        parser.error("--figure is for growth, with the memory that --no-memory leaves out")
    return arguments
