"""Where a training starts: at its newest checkpoint, at the weights of another one, or afresh."""

from pathlib import Path

from adaptive_span.checkpoint import files, loading
from adaptive_span.checkpoint.files import State
from adaptive_span.checkpoint.matching import corpus_for
from adaptive_span.config.schema import Config
from adaptive_span.data.corpus import Corpus, prepare
from adaptive_span.distributed import Process
from adaptive_span.errors import UserError
from adaptive_span.terminal.printing import print_line
from adaptive_span.training import optimizer
from adaptive_span.training.old_reach import with_old_reach
from adaptive_span.training.state import TrainState
from adaptive_span.training.weight_average import KEY, average_in


def other_weights(config: Config, saved: State | None) -> State | None:
    """Return the checkpoint that the run starts from if it has none of its own, and one is named."""
    source = config.train.init_from or config.train.continue_from
    return loading.load(Path(source)) if source and saved is None else None


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


def begin(training: TrainState, weights: State) -> None:
    """Start from the weights of another training; for `train.continue_from` also from its optimizer state and step.

    Raises:
        UserError: The weights do not fit, are not finite, or come without the optimizer state, or the average of the
            weights, that is wanted.
    """
    train, model = training.config.train, training.model
    source = Path(train.init_from or train.continue_from or "")
    tensors = with_old_reach(weights, model.config, source) if train.init_from else weights["model"]
    files.check_fits(model, tensors, source)
    files.check_finite(tensors, source)
    model.load_state_dict(tensors)
    training.read_spans()
    if training.average is not None:
        training.average.restart()
    if train.continue_from:
        _continue(training, weights)


def _continue(training: TrainState, state: State) -> None:
    """Take over the optimizer's state, the average of the weights, and the step."""
    train, ours, theirs = training.config.train, training.config.optimizer.name, state["config"]["optimizer"]["name"]
    source, gathered = Path(train.continue_from or ""), state.get("optimizer", {}).get("state")
    if not gathered:
        raise UserError(f"train.continue_from={source} holds weights alone; give train.init_from={source}")
    if theirs != ours:
        raise UserError(
            f"train.continue_from={source} was trained with {theirs}, whose state optimizer={ours} cannot take "
            f"over; give optimizer={theirs}, or train.init_from={source}"
        )
    frozen = state["config"].get("train", {}).get("freeze", "none")
    if frozen != train.freeze:
        raise UserError(
            f"train.continue_from={source} was trained with train.freeze={frozen}, whose optimizer's state "
            f"train.freeze={train.freeze} cannot take over; give train.init_from={source}"
        )
    if training.average is not None:
        if KEY not in state:
            raise UserError(
                f"train.continue_from={source} holds no average of its weights, which train.average={train.average:g} "
                f"would resume; give train.average=0, or train.init_from={source}, where an average begins"
            )
        training.average.model.load_state_dict(average_in(state, training.model, source))
    training.step = state["step"]
    if training.step >= train.total_steps:
        raise UserError(
            f"train.continue_from={source} has {training.step} steps behind it, and this training ends after "
            f"{train.total_steps}; raise train.steps"
        )
    optimizer.load_state_dict(training.optimizer, {"state": gathered})
