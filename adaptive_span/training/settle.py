"""Settle at the start of a run what its configuration leaves to the machine, and put it into words."""

from dataclasses import replace

import torch

from adaptive_span.attention.dispatch import chosen
from adaptive_span.checkpoint.files import State
from adaptive_span.config.schema import Config
from adaptive_span.distributed import Process
from adaptive_span.errors import UserError
from adaptive_span.hardware import gpu, precision, step_graph
from adaptive_span.hardware.compilers import why_inductor_cannot_build
from adaptive_span.terminal.printing import print_line


def settle(config: Config, process: Process, before: str | None) -> tuple[Config, dict[str, str]]:
    """Return the configuration with its precision filled in, and device, precision, attention and graphs in words.

    Call it in every process; all get the same.

    Args:
        config: What was asked for.
        process: This one.
        before: The precision of the run's checkpoint, None where it begins.

    Raises:
        UserError: This machine cannot have what is asked for.
    """
    hardware, device = config.hardware, process.device
    if hardware.compile and (problem := why_inductor_cannot_build(device.type)):
        raise UserError(f"hardware.compile=true cannot run here: {problem}; take hardware.compile=false")
    name, reason = precision.choose(hardware.precision, before, device)
    if process.max(int(name == "fp32")) and name == "bf16" and hardware.precision == "auto" and before is None:
        name, reason = "fp32", "the GPU of another process has no bf16 in hardware"
    if process.is_main and precision.is_emulated(name, device):
        print_line(precision.EMULATED)
    settled = {
        "device": _device(config, process),
        "precision": f"{name} ({reason})",
        "attention": _attention(config, device, name),
        "graphs": _graphs(config, device),
    }
    return replace(config, hardware=replace(hardware, precision=name)), settled


def begun_with(saved: State | None) -> str | None:
    """Return the precision of a training's state, None where there is no state."""
    return None if saved is None else saved["config"].get("hardware", {}).get("precision", "fp32")


def _device(config: Config, process: Process) -> str:
    device, asked = process.device, config.hardware.device
    name, reason = device.type, "as asked for"
    if device.type == "cuda":
        described = gpu.describe(device)
        name = described.name if process.world_size == 1 else f"{process.world_size} × {described.name}"
        reason = "there is a GPU" if asked == "auto" else reason
        reason += "; ROCm is untested" if described.is_rocm else ""
    elif device.type == "mps":
        reason += "; it is untested"
    elif asked == "auto":
        reason = "torch sees no GPU"
    return f"{name} ({reason})"


def _graphs(config: Config, device: torch.device) -> str:
    wanted, reason = step_graph.choose(config.hardware.graphs, device)
    return f"{'on' if wanted else 'off'} ({reason})"


def _attention(config: Config, device: torch.device, name: str) -> str:
    model, dtype = config.model, torch.bfloat16 if name == "bf16" else torch.float32
    attention, reason = chosen(model.attention, device, model.head_size, dtype)
    return f"{attention} ({reason})"
