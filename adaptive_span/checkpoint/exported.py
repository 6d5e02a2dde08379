"""Read and write a model as a folder: model.safetensors, config.json and vocabulary.json.

`adaptive-span export` adds what others need to load it without this package. The numbers need
`pip install 'adaptive-span[export]'`.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from adaptive_span.checkpoint import files
from adaptive_span.checkpoint.paths import CONFIG, VOCABULARY, WEIGHTS
from adaptive_span.config.data_sets import completed
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.schema import Config
from adaptive_span.data.vocabulary import Vocabulary
from adaptive_span.errors import UserError, first_line
from adaptive_span.model.transformer import Transformer
from adaptive_span.storage import strict_json
from adaptive_span.storage.stored import from_dict, lookup, read_json, shortened
from adaptive_span.storage.writing import atomic_write

MODEL_TYPE = "adaptive_span"
HERE_ONLY = ("span_init", "trim_cache", "attention", "init")  # of `ModelConfig`: how it is trained, not what it is
PRIVATE = ("file", "path", "directory", "tokenizer")  # of `DataConfig`: places on one machine
SHARED = "output.embedding."  # names that stand for the input's tensors where both are tied
TABLE, SHARED_TABLE = "embedding.weight", "output.weight"  # the same where there is one table


def read(folder: Path) -> files.State:
    """Return what a folder holds, in the form of a checkpoint.

    Raises:
        UserError: A file is damaged or of another kind, or the extra `export` is missing.
    """
    source = folder / CONFIG
    values = read_json(source, dict)
    if values.get("model_type") != MODEL_TYPE:
        kind = shortened(values.get("model_type"))
        raise UserError(
            f"{folder} holds another kind of model (model_type={kind} in {CONFIG}); export writes such folders"
        )
    training = lookup(values, "training", dict, source)
    model = {key: values[key] for key in _shared_keys() if key in values}
    tensors = _read_tensors(folder / WEIGHTS)
    if model.get("tied") and model.get("cutoffs"):
        shared = {SHARED + name.removeprefix("embedding."): name for name in tensors if name.startswith("embedding.")}
        tensors |= {alias: tensors[name] for alias, name in shared.items()}
    if model.get("tied_output") and TABLE in tensors:
        tensors[SHARED_TABLE] = tensors[TABLE]
    state = {
        "config": {"model": model} | {key: training[key] for key in ("data",) if key in training},
        "corpus": training.get("corpus"),
        "vocab_size": lookup(values, "vocab_size", int, source),
        "step": lookup(training, "step", int, source),
        "model": tensors,
    }
    if (folder / VOCABULARY).exists():
        state["vocabulary"] = read_json(folder / VOCABULARY, dict)
    return files.check(state, folder, files.WEIGHTS)


def write(state: files.State, model: Transformer, vocabulary: Vocabulary, folder: Path, source: Path) -> None:
    """Write a model's weights, what they are, and the symbols that they know.

    Args:
        state: The checkpoint that the model is of.
        model: The model.
        vocabulary: Its symbols.
        folder: An existing one.
        source: The checkpoint's place, for messages.

    Raises:
        UserError: The disk does not take it, or the extra `export` is missing.
    """
    config = from_dict(completed(state["config"]), Config, source).as_dict()
    data = {key: value for key, value in config["data"].items() if key not in PRIVATE}
    sizes = {key: value for key, value in asdict(model.config).items() if key in _shared_keys()}
    values = {
        "model_type": MODEL_TYPE,
        "architectures": ["AdaptiveSpanForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_adaptive_span.AdaptiveSpanConfig",
            "AutoModelForCausalLM": "modeling_adaptive_span.AdaptiveSpanForCausalLM",
        },
        **sizes,
        "layer_order": model.order if model.config.ffn_size else None,  # what the order of the blocks is, resolved
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": False,
        "training": {"step": state["step"], "corpus": state.get("corpus"), "data": data},
    }
    strict_json.write(values, folder / CONFIG)
    strict_json.write(vocabulary.pack(), folder / VOCABULARY)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not _is_alias(name, model.config)}
    # The library's own writer of files makes them readable by their owner alone.
    content = _safetensors().save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    with atomic_write(folder / WEIGHTS) as temporary:
        temporary.write_bytes(content)


def _is_alias(name: str, config: ModelConfig) -> bool:
    return (config.tied and name.startswith(SHARED)) or (config.tied_output and name == SHARED_TABLE)


def _shared_keys() -> list[str]:
    return [field.name for field in fields(ModelConfig) if field.name not in HERE_ONLY]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    library = _safetensors()
    from safetensors import SafetensorError

    try:
        tensors: dict[str, Tensor] = library.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); it has been damaged") from None
    return tensors


def _safetensors() -> Any:
    """Return the library, or say which extra brings it."""
    try:
        import safetensors.torch
    except ModuleNotFoundError as missing:
        raise UserError(f"there is no {missing.name} here; pip install 'adaptive-span[export]' brings it") from None
    return safetensors.torch
