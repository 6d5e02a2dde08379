"""Where a training starts: at its newest checkpoint, at the weights of another one, or afresh."""

from pathlib import Path

from adaptive_span.checkpoint import original
from adaptive_span.checkpoint.files import State
from adaptive_span.checkpoint.matching import corpus_for
from adaptive_span.config.schema import Config
from adaptive_span.data.corpus import Corpus, prepare
from adaptive_span.distributed import Process
from adaptive_span.terminal.printing import print_line


def other_weights(config: Config, saved: State | None) -> State | None:
    """Return the checkpoint that the run starts from if it has none of its own, and one is named."""
    source = config.train.init_from or config.train.continue_from
    return original.load(Path(source)) if source and saved is None else None


def open_corpus(config: Config, saved: State | None, weights: State | None, process: Process) -> Corpus:
    """Return the text, numbered as the weights that the run starts from know it. Call it in every process.

    Raises:
        UserError: The text is not what it should be, or holds symbols that the weights do not know.
    """
    source, by_frequency = config.train.init_from or config.train.continue_from, config.model.reads_by_frequency
    if weights is not None and source:
        corpus = corpus_for(weights, source, config.data, by_frequency, config.numbering)
    elif source and saved is not None and "vocabulary" in saved:  # that of the weights that it began with
        corpus = corpus_for(saved, str(config.run.dir), config.data, by_frequency, None)
    else:
        corpus = prepare(config.data, by_frequency)
    process.wait_for_all()
    if process.is_main:
        for warning in corpus.warnings(config.data):
            print_line(f"warning: {warning}")
    return corpus
