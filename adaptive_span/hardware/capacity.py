"""Refuse what a machine cannot do, from sizes alone: nothing is allocated, and torch need not be imported."""

import os
import sys
from dataclasses import fields
from itertools import pairwise

from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.registry import OPTIMIZERS
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.hardware import machine

GB = 10**9
PROCESSES_PER_CORE = 4
SLURM_KEYS = (
    "gpus cpus memory partition account qos constraint time requeues parallel_jobs wait setup sbatch"
).split()  # of `hardware`; without hardware=slurm nobody reads them


def check_here(config: Config) -> None:
    """Refuse a training that this machine cannot hold, before torch is imported.

    Weights are made in main memory; the rest may be in a GPU's.

    Raises:
        UserError: It needs more memory, or more processes than the cores carry.
    """
    hardware, memory = config.hardware, machine.memory(max(1, config.hardware.processes))
    check_processes(hardware)
    if hardware.device == "cpu" or not machine.may_have_gpu():
        check_memory(config, 0, hardware.world_size, memory)
    else:
        _refuse(_weights(config.model, 0), 4, memory)


def check_processes(hardware: HardwareConfig) -> None:
    """Refuse many more processes than cores.

    Raises:
        UserError: There are too many.
    """
    most = PROCESSES_PER_CORE * machine.cores()
    if hardware.processes > most:
        raise UserError(
            f"hardware.processes={hardware.processes} is more than {PROCESSES_PER_CORE} for each of the "
            f"{machine.cores()} cores here; take hardware.processes={most} or fewer"
        )


def check_memory(config: Config, vocab_size: int, processes: int, memory: int | None) -> None:
    """Refuse a training whose step needs more memory than there is, at the very least.

    Counted are weights, gradients, the optimizer's state, the average of the weights if there is one, and what every
    layer keeps of its input.

    Args:
        config: The training.
        vocab_size: Symbols of the text; 0: not known yet.
        processes: That share the batch.
        memory: Bytes that one process may have; None: unknown, and nothing is refused.

    Raises:
        UserError: It does not fit.
    """
    rows = max(1, config.train.batch_size // processes // config.train.batch_split)
    sizes = {key: copies(config) * count for key, count in _weights(config.model, vocab_size).items()}
    tokens = rows * config.model.block_size
    kept = tokens * (config.model.num_layers * config.model.hidden_size + vocab_size) // 2  # of 2 bytes in bf16
    key = "train.batch_size" if rows >= config.model.block_size else "model.block_size"
    value = config.train.batch_size if rows >= config.model.block_size else config.model.block_size
    _refuse(sizes | {f"{key}={value}": kept}, 4, memory)


def check_scoring(model: ModelConfig, vocab_size: int, rows: int, block_size: int, memory: int | None) -> None:
    """Refuse to score more rows at a time than memory can hold, at the very least.

    Raises:
        UserError: It does not fit.
    """
    index_numbers = 2 * rows * block_size  # where each token stands, as 64 bits
    _refuse(_weights(model, vocab_size) | {f"batch_size={rows} with block_size={block_size}": index_numbers}, 4, memory)


def parameters(model: ModelConfig, vocab_size: int) -> int:
    """Return the number of parameters of a model."""
    return sum(_weights(model, vocab_size).values())


def copies(config: Config) -> int:
    """Return how many numbers a training keeps for each weight.

    They are the weight itself, its gradient, the optimizer's state, and an average.
    """
    averages = int(config.train.average > 0)
    if config.train.freeze == "weights":
        return 1 + averages
    state: int = OPTIMIZERS.fact(config.optimizer.name, "state", 0)
    return 2 + state + (config.optimizer.momentum > 0) + averages


def warn_of_slurm_keys(hardware: HardwareConfig) -> None:
    """Print one line if keys are set that only SLURM reads."""
    default = {field.name: getattr(HardwareConfig(), field.name) for field in fields(hardware)}
    given = [f"hardware.{key}" for key in SLURM_KEYS if getattr(hardware, key) != default[key]]
    if given and os.environ.get("RANK", "0") == "0":
        print(f"warning: {', '.join(given)} ask SLURM for something, without hardware=slurm nobody", file=sys.stderr)


def _weights(model: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Return the numbers of a model's weights, by the setting that makes most of them."""
    size, order = model.hidden_size, model.block_order()
    attention, feed_forward = order.count("a"), order.count("f")
    norm = size * (1 if model.norm_kind == "rms" else 2)
    own = 4 * size * size + norm + model.num_heads * model.adaptive_span
    matrices = model.ffn_matrices
    between = matrices * size * model.ffn_size + (matrices - 1) * model.ffn_size + size + norm
    return {
        f"model.hidden_size={size}": attention * own + norm * (model.norm == "pre"),
        f"model.memory_size={model.memory_size}": attention * 2 * size * model.memory_size,
        f"model.ffn_size={model.ffn_size}": feed_forward * between,
        f"model.max_span={model.max_span}": model.head_size * model.max_span,
        f"a vocabulary of {vocab_size:,}": _input_and_output(model, vocab_size),
    }


def _input_and_output(model: ModelConfig, vocab_size: int) -> int:
    size, clusters = model.hidden_size, len(model.cutoffs)
    if not vocab_size:
        return 0
    if not clusters:
        return (1 if model.tied_output else 2) * vocab_size * size + vocab_size
    sizes: list[int] = [size // model.division**index for index in range(clusters + 1)]
    counts = [high - low for low, high in pairwise([0, *model.cutoffs, vocab_size])]
    embedding = sum((count + size) * vector_size for count, vector_size in zip(counts, sizes, strict=True))
    return embedding * (1 if model.tied else 2) + vocab_size + clusters * (size + 1)


def _refuse(sizes: dict[str, int], width: int, memory: int | None) -> None:
    """Raise `UserError` if numbers of `width` bytes need more than `memory`.

    Args:
        sizes: How many numbers, by the setting that asks for them.
        width: Bytes of each.
        memory: Bytes that there are; None: unknown.
    """
    need = width * sum(sizes.values())
    if memory is not None and need > memory:
        most = max(sizes, key=sizes.__getitem__)
        raise UserError(
            f"this needs at least {need / GB:,.1f} GB in each process, {width * sizes[most] / GB:,.1f} of them for "
            f"{most}, but a process has {memory / GB:,.1f} GB here; make that smaller"
        )
