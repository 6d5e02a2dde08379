"""Prepare a text, and show a first look at it: sizes, vocabulary, how each split begins, and where it lies.

    adaptive-span data enwik8
    adaptive-span data files data.path=DIR data.level=word

The other arguments are those of `adaptive-span train`. The order-0 score is that of a model which knows nothing but how
often each symbol occurs in train: what every model must beat.
"""

import argparse
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.overrides import pasted
from adaptive_span.errors import UserError
from adaptive_span.launch import composition
from adaptive_span.terminal.plain_text import printable
from adaptive_span.terminal.printing import console, print_line, print_places, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from adaptive_span.data.corpus import Corpus

MOST_FREQUENT = 12  # symbols
SHOWN = {"byte": 300, "word": 60, "subword": 80}  # tokens of a sample


def main(argv: Sequence[str]) -> None:
    """Prepare the text, and print what it is.

    Raises:
        UserError: It cannot be had, or is not what its configuration says.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("adaptive-span data", description=__doc__, formatter_class=raw)
    parser.add_argument(
        "name", metavar="NAME", help="stdlib, enwik8, text8, wikitext103, files, or a file of conf/data"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the data, as for a training")
    arguments = parser.parse_intermixed_args(argv)
    if "=" in arguments.name:
        raise UserError(f"{arguments.name} stands where the name of a text belongs: adaptive-span data NAME key=value")
    given = [f"data={arguments.name}", *arguments.settings]
    config = composition.compose(given)

    from adaptive_span.data.corpus import prepare

    corpus = prepare(config.data, config.model.reads_by_frequency)
    _print(corpus, config.data, given)


def _print(corpus: "Corpus", config: DataConfig, given: list[str]) -> None:
    from adaptive_span.data import first_look, source

    counts = {split: first_look.symbol_counts(corpus.tokens(split), corpus.vocab_size) for split in source.SPLITS}
    train = counts["train"]
    print_table(_splits(corpus, {split: first_look.order_zero(each, train) for split, each in counts.items()}))
    order = (-train).argsort(kind="stable")[:MOST_FREQUENT]
    shares = [f"{first_look.symbol_name(corpus, number)} {train[number] / train.sum():.1%}" for number in order]
    print_line(f"\nvocabulary of {corpus.vocab_size:,} {corpus.level}s, of which train holds {(train > 0).sum():,}:")
    _print_wrapped(" · ".join(share.replace(" ", "\xa0") for share in shares))  # no line ends within one
    for split in source.SPLITS:
        print_line(f"\n{split} begins with")
        _print_wrapped(first_look.beginning(corpus, split, SHOWN[corpus.level]))
    for warning in corpus.warnings(config):
        print_line(f"\nwarning: {warning}")
    origin = corpus.manifest["source"]
    print_places(
        {
            "made from": ", ".join(origin) if isinstance(origin, list) else origin,
            "lies in": corpus.directory,
            "train on it": pasted("train", *given),
        }
    )


def _splits(corpus: "Corpus", order_zero: dict[str, float]) -> "Table":
    """Return a table of the splits: tokens, and the order-0 score in bits per token."""
    from rich.table import Table

    unit = "bpc" if corpus.level == "byte" else f"bits per {corpus.level}"
    table = Table(
        title=f"{corpus.manifest['name']}, by {corpus.level}s", title_justify="left", box=None, pad_edge=False
    )
    of_bytes = ["bytes per token", "order-0 bits/byte"] if corpus.level == "subword" else []
    for heading in ("split", f"{corpus.level}s", f"order-0 {unit}", *of_bytes):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for split, bits in order_zero.items():
        cells = [split, f"{len(corpus.tokens(split)):,}", f"{bits:.3f}"]
        if of_bytes:
            per_token = corpus.bytes_per_token(split)
            cells += [f"{per_token:.3f}", f"{bits / per_token:.3f}"]
        table.add_row(*cells)
    return table


def _print_wrapped(text: str) -> None:
    """Print a text indented, its own line ends as they are, and nothing else that could steer a terminal."""
    for line in printable(text).split("\n"):
        for part in wrap(line, min(console.width, 120) - 2) or [""]:
            print_line(f"  {part}")
