"""Which implementation of attention runs: asked for by name, or the fastest that this machine and model allow."""

import functools
import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from adaptive_span.attention import Attend, Attended, Context, MemoryKeysValues, SpanGeometry, banded
from adaptive_span.attention.own_types import uncompiled
from adaptive_span.config.registry import ATTENTIONS
from adaptive_span.errors import UserError
from adaptive_span.hardware.compilers import why_triton_cannot_build

LARGEST_HEAD = 128  # a tile of queries, one of keys and one of values share a multiprocessor's memory
LEAST_CAPABILITY = (8, 0)  # bfloat16, and loads that do not pass through registers


def register_attention(name: str, exchangeable: bool = False) -> Callable[[Attend], Attend]:
    """Return a decorator that makes a function the attention `model.attention=NAME`.

    The function is an `Attend`: `adaptive_span.attention` says what it is given and what it returns.

    Args:
        name: What `model.attention` calls it.
        exchangeable: Whether it computes the definition in `adaptive_span.attention`. A run may then change from it to
            another, and is scored by the fastest. Else its checkpoints are scored by it alone.
    """
    return ATTENTIONS.register(name, exchangeable=exchangeable)


def choose(name: str) -> Attend:
    """Return the implementation of a name.

    Args:
        name: a value of `model.attention`. `auto` and `fused` depend on the machine, and are resolved at each call by
            what is given there, so that a model may be moved to another device.

    Returns:
        A function that computes attention. It raises `UserError` where `fused` cannot run.
    """
    implementation: Attend = ATTENTIONS[name]
    return implementation


@uncompiled
def automatic(
    context: Context,
    position_embedding: Tensor,
    geometry: SpanGeometry,
    dropout: float = 0.0,
    memory: MemoryKeysValues | None = None,
) -> Attended:
    """Compute attention as an `Attend`: fused where that runs, else banded."""
    name, _ = chosen("auto", position_embedding.device, position_embedding.size(0), context.dtype)
    return _implementation(name)(context, position_embedding, geometry, dropout, memory)


@uncompiled
def fused_or_refused(
    context: Context,
    position_embedding: Tensor,
    geometry: SpanGeometry,
    dropout: float = 0.0,
    memory: MemoryKeysValues | None = None,
) -> Attended:
    """Compute attention as an `Attend`, by the fused kernels. Raises `UserError` where they cannot run."""
    chosen("fused", position_embedding.device, position_embedding.size(0), context.dtype)
    return _implementation("fused")(context, position_embedding, geometry, dropout, memory)


def chosen(name: str, device: torch.device, head_size: int, dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    """Return the implementation that a name means on a device, and why.

    Args:
        name: a value of `model.attention`; `auto` means fused where that runs, else banded.
        device: where queries, keys and values are.
        head_size: D.
        dtype: the type of queries, keys and values.

    Returns:
        The name of an implementation, and the reason, in words for people.

    Raises:
        UserError: if `fused` is asked for where it cannot run.
    """
    why_not = why_not_fused(device, head_size, dtype)
    if name == "auto":
        if why_not is None and _interpreted():  # which is for tests
            why_not = "Triton only interprets its kernels here"
        return ("banded", why_not) if why_not else ("fused", f"on {torch.cuda.get_device_name(device)}")
    if name == "fused" and why_not:
        raise UserError(
            f"model.attention=fused cannot run here: {why_not}; take model.attention=banded, or auto, which is fused "
            f"wherever that runs"
        )
    return name, "as asked for"


@functools.cache
def why_not_fused(device: torch.device, head_size: int, dtype: torch.dtype = torch.float32) -> str | None:
    """Return what keeps the fused kernels from running.

    Args:
        device: where queries, keys and values are.
        head_size: D.
        dtype: their type.

    Returns:
        The reason, as a part of a sentence; None where they run.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if head_size > LARGEST_HEAD:
        return f"heads of {head_size} are larger than {LARGEST_HEAD}"
    if _interpreted():
        return (
            None if dtype in (torch.float32, torch.float16) else "Triton's interpreter computes in fp32 and fp16 alone"
        )
    if device.type != "cuda":
        return "no GPU that Triton supports"
    if torch.version.hip is not None:
        return "the kernels are untested on ROCm"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"{dtype} is neither float32 nor bfloat16"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        name, least = torch.cuda.get_device_name(device), ".".join(map(str, LEAST_CAPABILITY))
        return f"{name} has compute capability {capability[0]}.{capability[1]}, below {least}"
    return why_triton_cannot_build()


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _implementation(name: str) -> Attend:
    if name == "fused":
        from adaptive_span.attention import fused  # triton, which a machine without a GPU need not have

        return fused.attend
    return banded.attend
