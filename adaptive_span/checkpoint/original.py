"""Read checkpoints of the original project, in the form of this one's.

A file holds `model`, `optimizer`, `iter_no`, `logger` and `scheduler_iter`. The sizes of the model are read off its
tensors. They do not tell the ramp, 32 in all that was published, nor the block size: 512 is taken, which changes no
exact score.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptive_span.checkpoint import files
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.optimizer_schema import OptimizerConfig
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError, did_you_mean
from adaptive_span.model.transformer import Transformer
from adaptive_span.storage import tensor_file
from adaptive_span.storage.stored import lookup
from adaptive_span.storage.writing import explain_disk_errors

ADDRESS = "https://dl.fbaipublicfiles.com/adaptive-span/{name}.pt"
NAMES = ("enwik8", "enwik8_large", "text8", "text8_large")
KEYS = {"model", "optimizer", "iter_no", "scheduler_iter"}  # and logger: curves, which nothing here reads

_RENAME = (
    (r"^module\.", ""),
    (r"^key_pe$", "positions"),
    (r"^in_emb\.emb_layers\.(\d+)\.weight$", r"embedding.vectors.\1"),
    (r"^in_emb\.emb_projs\.", "embedding.projections."),
    (r"^in_emb\.", "embedding."),
    (r"^out_emb\.cluster_proj\.", "output.clusters."),
    (r"^out_emb\.out_layers\.(\d+)\.weight$", r"output.embedding.vectors.\1"),
    (r"^out_emb\.out_layers\.(\d+)\.bias$", r"output.biases.\1"),
    (r"^out_emb\.out_projs\.", "output.embedding.projections."),
    (r"^out_emb\.", "output."),
    (r"^layers\.(\d+)\.attn\.attn\.adaptive_span\._mask\.current_val$", r"attention_blocks.\1.attention.span.fraction"),
    (r"^layers\.(\d+)\.attn\.attn\.persistent_memory\.val$", r"attention_blocks.\1.attention.memory.value"),
    (r"^layers\.(\d+)\.attn\.attn\.persistent_memory\.key$", r"attention_blocks.\1.attention.memory.key"),
    (r"^layers\.(\d+)\.attn\.proj_val\.", r"attention_blocks.\1.attention.value."),
    (r"^layers\.(\d+)\.attn\.proj_out\.", r"attention_blocks.\1.attention.output."),
    (r"^layers\.(\d+)\.attn\.proj_", r"attention_blocks.\1.attention."),
    (r"^layers\.(\d+)\.norm1\.", r"attention_blocks.\1.norm."),
    (r"^layers\.(\d+)\.norm2\.", r"feed_forward_blocks.\1.norm."),
    (r"^layers\.(\d+)\.ff\.fc1\.", r"feed_forward_blocks.\1.expand."),
    (r"^layers\.(\d+)\.ff\.fc2\.", r"feed_forward_blocks.\1.contract."),
)
# Constant ramps, and a second name of each span; where input and output are tied, grads name the input's alone.
_LEFT_OUT = re.compile(r"\._mask\.mask_template$|\.persistent_memory\.adaptive_span\.")


def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under this project's names and in its shapes."""
    return {_ours(name): _reshaped(name, tensor) for name, tensor in tensors.items() if not _LEFT_OUT.search(name)}


def _ours(name: str) -> str:
    for pattern, ours in _RENAME:
        name = re.sub(pattern, ours, name)
    return name


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("_mask.current_val"):
        return tensor.flatten()  # (H, 1, 1) → (H,)
    return tensor.squeeze(0) if name.endswith("key_pe") else tensor  # (1, D, L) → (D, L)


def is_original(state: Any) -> bool:
    """Return whether what was read from a file is a checkpoint of the original project."""
    return isinstance(state, dict) and state.keys() >= KEYS


def convert(state: files.State, path: Path, ramp: int = 32) -> files.State:
    """Return a checkpoint of the original project in the form of this project's.

    Args:
        state: What was read.
        path: The file, for messages.
        ramp: Tokens over which the soft mask falls; the file does not say.

    Raises:
        UserError: Something is missing or does not fit.
    """
    step = lookup(state, "scheduler_iter", int, path)
    if step < 0:
        raise UserError(f"{path} has scheduler_iter={step}: it is no checkpoint of the original project")
    tensors = rename(lookup(state, "model", dict[str, Tensor], path))
    config, vocab_size = _sizes(tensors, path, ramp)
    with torch.device("meta"):
        model = Transformer(config, vocab_size)
    files.check_fits(model, tensors, path)
    gathered = _gathered(state, path)
    kept = next(iter(gathered.values()), {})
    name = "adagrad" if "sum" in kept else "adam" if "exp_avg" in kept else "sgd"
    return {
        "config": Config(model=config, optimizer=OptimizerConfig(name)).as_dict(),
        "corpus": None,  # the file does not say
        "vocab_size": vocab_size,
        "step": step,
        "model": tensors,
        "optimizer": _optimizer_state(gathered, list(state["model"]), model, path),
    }


def _sizes(tensors: dict[str, Tensor], path: Path, ramp: int) -> tuple[ModelConfig, int]:
    """Return the model's configuration and its vocabulary's size, from the shapes of its tensors."""

    def shape(name: str, dimensions: int = 2) -> torch.Size:
        if name not in tensors:
            raise UserError(f"{path} is no checkpoint of the original project: there is no tensor for {name} in it")
        size = tensors[name].shape
        if len(size) != dimensions or 0 in size:
            raise UserError(f"{path} is no checkpoint of the original project: {name} has shape {tuple(size)} in it")
        return size

    first = "attention_blocks.0.attention."
    head_size, max_span = shape("positions")
    hidden_size = shape(first + "query.weight")[0]
    clusters = [name for name in tensors if name.startswith("embedding.vectors.")]
    counts = [shape(f"embedding.vectors.{index}")[0] for index in range(len(clusters))]
    vocab_size = sum(counts) if clusters else shape("embedding.weight")[0]
    shared = [name for name in tensors if name.startswith("output.embedding.")]
    config = ModelConfig(
        name=path.stem,
        num_layers=len({name.split(".")[1] for name in tensors if name.startswith("attention_blocks.")}),
        hidden_size=hidden_size,
        ffn_size=shape("feed_forward_blocks.0.expand.weight")[0] if any("expand" in name for name in tensors) else 0,
        memory_size=shape(first + "memory.key", 3)[2] if any("memory" in name for name in tensors) else 0,
        num_heads=hidden_size // head_size,
        max_span=max_span,
        block_size=min(512, max_span),
        adaptive_span=any("span.fraction" in name for name in tensors),
        ramp=ramp,
        cutoffs=[sum(counts[:index]) for index in range(1, len(counts))],
        division=hidden_size // shape("embedding.vectors.1")[1] if clusters else 4,
        tied=all(_same(tensors[name], tensors.get(name.removeprefix("output."))) for name in shared),
    )
    config.validate()
    return config, vocab_size


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one, other)


def _gathered(state: files.State, path: Path) -> dict[int, dict[str, Any]]:
    """Return the optimizer's state, by the index of the parameter."""
    gathered: dict[int, dict[str, Any]] = lookup(lookup(state, "optimizer", dict, path), "state", dict, path)
    if not all(isinstance(index, int) and isinstance(values, dict) for index, values in gathered.items()):
        raise UserError(f"{path} is no checkpoint of the original project: its optimizer's state is of another form")
    return gathered


def _optimizer_state(
    gathered: dict[int, dict[str, Any]], names: list[str], model: Transformer, path: Path
) -> files.State:
    """Return the optimizer's state by the index of our parameters; the file's index counts `names` in its own order."""
    ours = dict(model.named_parameters())  # a shared one under the input's name, in the file too
    theirs = [_ours(name) for name in names if _ours(name) in ours]
    if gathered and (gathered.keys() != set(range(len(theirs))) or len(theirs) != len(ours)):
        raise UserError(f"{path} holds the optimizer's state of {len(gathered)} parameters, but has {len(theirs)}")
    converted = {}
    for index, (name, parameter) in enumerate(ours.items()):
        values = gathered[theirs.index(name)] if gathered else {}
        for key, value in values.items():
            if isinstance(value, Tensor) and value.dim() and value.numel() != parameter.numel():
                raise UserError(
                    f"{path} does not fit: the optimizer's {key} of {name} has shape {tuple(value.shape)}, the "
                    f"parameter {tuple(parameter.shape)}"
                )
        converted[index] = {key: _as_parameter(value, parameter) for key, value in values.items()}
    return {"state": converted}


def _as_parameter(value: Any, parameter: Tensor) -> Any:
    """Return a sum with its parameter's shape, and a count as it is."""
    return value.reshape(parameter.shape) if isinstance(value, Tensor) and value.dim() else value


def download(name: str, directory: Path) -> Path:
    """Download a published checkpoint and check it. An interrupted download resumes.

    Args:
        name: One of `NAMES`.
        directory: Where to put it.

    Raises:
        UserError: There is no such name, or the file cannot be downloaded.
    """
    if name not in NAMES:
        raise UserError(
            f"there is no published checkpoint '{name}', only {', '.join(NAMES)}{did_you_mean(name, NAMES)}"
        )
    from adaptive_span.data.download import fetch  # pooch, which reading files does not need

    path = directory / f"{name}.pt"
    if not path.exists():
        try:
            fetch([ADDRESS.format(name=name)], path)
        except UserError as error:
            raise UserError(
                f"{name} could not be downloaded ({error}); fetch it on a machine with internet; evaluate.py takes it "
                f"as checkpoint=FILE"
            ) from None
    convert(tensor_file.read(path), path)
    return path


def convert_file(file: Path, out: Path, ramp: int) -> files.State:
    """Write a checkpoint of the original project as one of this project's, and return what was written.

    Args:
        file: To read.
        out: To write.
        ramp: Tokens over which the soft mask falls; the file does not say.

    Raises:
        UserError: `file` is a checkpoint of this project already, or damaged; or `out` cannot be written.
    """
    state = tensor_file.read(file)
    if not is_original(state):
        raise UserError(f"{file} is a checkpoint of this project already")
    state = convert(state, file, ramp)
    with explain_disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    files.save(state, out)
    return state
