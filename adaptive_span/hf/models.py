"""Load a causal language model of transformers, with its tokenizer, to be read and not trained."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from adaptive_span.errors import UserError, first_line


@dataclass(frozen=True)
class Loaded:
    """Hold a model, its tokenizer, and what it is.

    Attributes:
        model: in evaluation mode, its weights frozen.
        tokenizer: its own.
        name: as it was asked for.
        revision: the commit of its weights; None where they have none, as those in a folder.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None


def load(name: str, revision: str | None, dtype: torch.dtype, device: torch.device) -> Loaded:
    """Return a model.

    Args:
        name: a folder, a folder with one GGUF file, or a name on the Hugging Face Hub.
        revision: a branch, tag or commit there; None for the main one.
        dtype: of the weights.
        device: where they go.

    Raises:
        UserError: There is no such model, it is no causal language model, or its weights cannot be loaded.
    """
    files = _gguf(name)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("transformers").setLevel(logging.ERROR)  # a warning per weight that is read from a GGUF file
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, **files)
        if config.is_encoder_decoder:
            raise UserError(f"model={name} is an encoder with a decoder; fit takes causal language models")
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, **files)
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype, **files)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise UserError(f"model={name} cannot be loaded: {first_line(error)}") from error
    model = model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    return Loaded(model, tokenizer, name, getattr(model.config, "_commit_hash", None))


def longest_text(model: PreTrainedModel) -> int | None:
    """Return the tokens that a model was made for, or None where it does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def check_context(model: PreTrainedModel, name: str, context: int) -> None:
    """Raise `UserError` where a text of `context` tokens is longer than the model takes."""
    longest = longest_text(model)
    if longest is not None and context > longest:
        raise UserError(f"context={context} is longer than the {longest:,} tokens that model={name} takes; give less")


def _gguf(name: str) -> dict[str, str]:
    """Return the argument that names the GGUF file in a folder; none where it holds weights of another kind."""
    folder = Path(name)
    if not folder.is_dir() or (folder / "config.json").exists():
        return {}
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if len(files) > 1:
        raise UserError(f"model={name} holds {len(files)} GGUF files; give a folder with one of them: {files}")
    if not files:
        raise UserError(f"model={name} holds neither a config.json nor a GGUF file; give the folder of a model")
    for module in ("gguf", "accelerate"):
        try:
            __import__(module)
        except ModuleNotFoundError:
            raise UserError(
                f"model={name} is a GGUF file, and there is no {module} here; pip install 'adaptive-span[gguf]' "
                f"brings it"
            ) from None
    return {"gguf_file": files[0]}
