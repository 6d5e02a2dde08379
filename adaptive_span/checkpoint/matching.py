"""Find the numbering of a text that fits the weights of a checkpoint: the one they were trained with, or none."""

from adaptive_span.checkpoint.files import State
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.data.corpus import Corpus, prepare
from adaptive_span.data.source import described
from adaptive_span.data.vocabulary import Vocabulary, tokenizer_of, unpack
from adaptive_span.errors import UserError


def vocabulary_for(
    state: State, source: str, data: DataConfig, by_frequency: bool, numbering: str | None
) -> Vocabulary:
    """Return what a checkpoint's ids stand for: as it says itself, else as the data that is named numbers it.

    Args:
        state: The checkpoint.
        source: Its file, for messages.
        data: The text that it was trained on; nameless where none is named.
        by_frequency: Whether ids must fall in frequency.
        numbering: The key of that name.

    Raises:
        UserError: Neither says it.
    """
    if "vocabulary" in state:
        return unpack(state["vocabulary"], state["vocab_size"], source)
    if not data.name:
        raise UserError(
            f"{source} does not hold its vocabulary; name the text that it was trained on with data=NAME, and "
            f"data.file=PATH if you have it, whose symbols are numbered likewise"
        )
    return corpus_for(state, source, data, by_frequency, numbering).numbering


def corpus_for(state: State, source: str, data: DataConfig, by_frequency: bool, numbering: str | None) -> Corpus:
    """Return a text, numbered as the weights of a checkpoint know its symbols.

    A checkpoint without its vocabulary (an old one, or one of the original project) fits where it was trained on this
    very corpus; or this is the whole published text, and has as many symbols; or the user gives `numbering=same`.

    Args:
        state: The checkpoint.
        source: Its file, for messages.
        data: The text.
        by_frequency: Whether ids must fall in frequency.
        numbering: The key of that name.

    Raises:
        UserError: Nothing proves that the numbering fits.
    """
    size = state["vocab_size"]
    if "vocabulary" in state:
        vocabulary = unpack(state["vocabulary"], size, source)
        if vocabulary.level != data.level:
            raise UserError(
                f"{source} reads {vocabulary.level}s, but data.level={data.level}; give data.level={vocabulary.level}"
            )
        if data.tokenizer and tokenizer_of(data).digest != vocabulary.digest:
            raise UserError(
                f"{source} reads by another tokenizer than data.tokenizer={data.tokenizer}; leave that out, and the "
                f"text is read by the one in {source}"
            )
        return prepare(data, by_frequency, vocabulary)
    corpus = prepare(data, by_frequency)
    if corpus.vocab_size != size:
        raise UserError(
            f"{source} has a vocabulary of {size:,} tokens, but {described(data)} with data.split={data.split} numbers "
            f"{corpus.vocab_size:,}; give the data that it was trained on"
        )
    # Of a published text, numbered by first appearance, the size proves the order: that of a shorter train part begins
    # that of a longer one.
    whole = state.get("corpus") is None and corpus.is_published(data)
    if numbering == "same" or state.get("corpus") == corpus.fingerprint or whole:
        return corpus
    raise UserError(
        f"{source} does not hold its vocabulary, and nothing proves that its {size:,} symbols are numbered as those of "
        f"{described(data)}; give the text that it was trained on (of a published checkpoint, the whole published "
        f"text), or numbering=same if you know that they are"
    )
