"""Say what a run is, in the words of its first lines."""

from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.schema import Config
from adaptive_span.config.train_schema import TrainConfig
from adaptive_span.data.corpus import Corpus
from adaptive_span.data.source import SPLITS
from adaptive_span.reporting.tracking import Tracker


def header(
    config: Config, corpus: Corpus, parameters: int, learning: int, settled: dict[str, str], tracker: Tracker
) -> dict[str, str | None]:
    """Return what to print before the first step, by name.

    Args:
        config: Of the run.
        corpus: Its text.
        parameters: How many numbers the model has.
        learning: How many of them updates change.
        settled: Device, precision, attention and graphs, as `settle` puts them.
        tracker: Where the run can be looked at.
    """
    return {
        "model": _model(config.model),
        "parameters": f"{parameters:,}" if learning == parameters else f"{parameters:,}, of which {learning:,} learn",
        "data": _data(config, corpus),
        **settled,
        "run": config.run.dir,
        **(tracker.places if tracker.place else {"tracker": tracker.name}),
    }


def _model(model: ModelConfig) -> str:
    between = f"ffn {model.ffn_size:,}" if model.ffn_size else f"memory {model.memory_size:,}"
    span = f"{'spans up to' if model.adaptive_span else 'all spans'} {model.max_span:,}"
    layers = f"{model.num_layers} layers × {model.num_heads} heads"
    return f"{model.name}: {layers}, hidden {model.hidden_size:,}, {between}, {span}"


def phases(train: TrainConfig) -> str:
    """Return how many steps the whole run has, and which."""
    total = f"training for {train.total_steps:,} steps"
    if not train.finetune_steps:
        return total
    return f"{total}: {train.steps:,} at the full rate, then {train.finetune_steps:,} at a tenth"


def _data(config: Config, corpus: Corpus) -> str:
    path = config.data.path or config.data.file
    name = config.data.name + (f" ({path})" if path else "")
    tokens = ", ".join(f"{split} {_count(len(corpus.tokens(split)))}" for split in SPLITS)
    size = f", {corpus.bytes_per_token('train'):.2f} bytes each" if corpus.level == "subword" else ""
    return f"{name}: {tokens} {corpus.level}s{size}, vocabulary {corpus.vocab_size:,}"


def _count(tokens: int) -> str:
    return f"{tokens:,}" if tokens < 1e6 else f"{tokens / 1e6:,.1f}M"
