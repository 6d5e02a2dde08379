"""Attention over the positions before each query, as far as each head's learned span: one signature, chosen by name.

`attend(context, positions, spans, ramp, limits, dropout, memory)` returns the heads' outputs, (B, M, H, D):

- context: queries, keys and values, projected as they are asked for (see `context.py`).
- positions (D, L): one learned vector a distance, oldest first (column −1 is the position just before the query).
- spans (H,): z of each head in tokens, exact, on the device; None where every head looks at all L positions.
- ramp: tokens over which the soft mask falls from 1 to 0.
- limits: for each head a whole number of tokens, known to the host, that its effective span does not exceed.
- dropout: probability with which an attention weight is dropped; 0 outside training.
- memory: persistent keys (H, D, N) and values (H, N, D), or None.

A head attends to distances d = 1 … L with the score (q·k + q·p_d) / sqrt(D) and to its memory with the score
q·k / sqrt(D); its weights are the softmax of score + log m(d) over both together, where m = 1 for the memory.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adaptive_span.attention import banded, dense
from adaptive_span.attention.context import Context, HiddenStates, KeysValues, join
from adaptive_span.errors import UserError
from adaptive_span.hardware.compilers import why_triton_cannot_build

Attend = Callable[..., Tensor]

LARGEST_HEAD = 128  # a tile of queries, one of keys and one of values share a multiprocessor's memory
LEAST_CAPABILITY = (8, 0)  # bfloat16, and loads that do not pass through registers


def choose(name: str) -> Attend:
    """The implementation of that name. Where it depends on the machine it is chosen at each call, by what is given, so
    that a model may be moved to another device."""
    if name in ("dense", "banded"):
        return {"dense": dense.attend, "banded": banded.attend}[name]

    return functools.partial(_attend, name)


@torch.compiler.disable
def _attend(name: str, context: Context, positions: Tensor, *others: Any, **named: Any) -> Tensor:
    name, _ = chosen(name, positions.device, positions.size(0), context.dtype)
    return _implementation(name)(context, positions, *others, **named)


def chosen(name: str, device: torch.device, head_size: int, dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    """The implementation that `name` means there, and why, for people: `auto` is fused where that runs, else banded."""
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
    """What keeps the fused kernels from running there, as part of a sentence; None where they run."""
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
    if name != "fused":
        return choose(name)
    from adaptive_span.attention import fused  # triton, which a machine without a GPU need not have

    return fused.attend


__all__ = ["Attend", "Context", "HiddenStates", "KeysValues", "choose", "chosen", "join", "why_not_fused"]
