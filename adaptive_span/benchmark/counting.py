"""Count what a training step asks of a GPU, on a machine that needs none.

The step runs on FakeTensors, which have shapes and types but no numbers, as if Triton could launch here. Each operator
and each kernel is noted with the bytes that it reads and writes and with its floating-point operations; each storage
with the time that it lives, which gives the memory at the height of the step.
"""

import re
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from adaptive_span import attention, optimizer
from adaptive_span.benchmark import profiles
from adaptive_span.benchmark.costs import Row, Settings
from adaptive_span.config import ModelConfig, OptimizerConfig
from adaptive_span.model import Transformer
from adaptive_span.span import SLACK

GIB = 2**30

# The first pattern that fits a launch's name says to which part of the table it belongs.
PARTS = {
    "attention kernels": "(forward|query|key_value|delta|memory)_kernel",
    "optimizer": "_foreach|adagrad",
    "matrix products": "^(mm|addmm|bmm|baddbmm)$",
    "layer norms": "layer_norm",
    "dropout": "dropout",
    "ReLU": "relu|threshold",
    "heads in order": "index_select|gather|scatter",
    "joining": "^cat$|zeros|fill|zero_",
    "copies and casts": "copy|clone|lift_fresh",
    "sums": "^(sum|mean|linalg_vector_norm)$",
    "input and output": "embedding|softmax|nll",
    "elementwise": "",
}

# Operators that launch more than one kernel on a GPU, as a profiler shows them.
SEVERAL = {"native_layer_norm_backward": 2, "slice_backward": 2, "select_backward": 2, "embedding_dense_backward": 4}
PICKING = ("gather", "index_select", "embedding")  # read of their first argument as much as they return
OVERWRITING = ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_")  # do not look at what was there
BLOCK, BLOCKS = 2**16, 320  # numbers of a block, and blocks of a launch, of torch's kernels for lists of tensors

# Products of each element that attention looks at, each of 2 D operations: kernels make some of them anew.
PRODUCTS = {"forward_kernel": 2, "query_kernel": 3, "key_value_kernel": 4}


@dataclass(frozen=True)
class Launch:
    """One kernel, or the kernels of one operator, with what they read, write and compute."""

    phase: str  # forward, backward, update
    name: str
    count: int
    bytes: int
    flops: float

    @property
    def part(self) -> str:
        """The part of the table that it belongs to."""
        return next(part for part, pattern in PARTS.items() if re.search(pattern, self.name))


@dataclass
class Step:
    """All that a training step asks for."""

    launches: list[Launch]
    kept: dict[str, int]  # bytes held for the backward pass, by the part of the launch that made them
    peak: int  # bytes held at the height of the step, parameters, gradients and optimizer state included


def table(settings: Settings, split: int) -> dict[str, Row]:
    """Return, for each part of a step, what it launches, moves, computes, and keeps for the backward pass."""
    config = replace(profiles.sizes(settings.model), dropout=settings.dropout)
    spans = profiles.spans(settings.profile, config, settings.scale)
    step = count(config, spans, settings.batch_size, split, settings.precision)
    rows = {part: _row([x for x in step.launches if x.part == part], step.kept.get(part, 0)) for part in PARTS}
    rows = dict(sorted(rows.items(), key=lambda row: -row[1]["GB"]))  # type: ignore[operator]
    height: Row = {"launches": None, "GB": None, "TFLOP": None, "GiB kept": step.peak / GIB}
    return rows | {"all": _row(step.launches, sum(step.kept.values())), "height of the step": height}


def _row(launches: Sequence[Launch], kept: int) -> Row:
    return {
        "launches": sum(launch.count for launch in launches),
        "GB": sum(launch.bytes for launch in launches) / 1e9,
        "TFLOP": sum(launch.flops for launch in launches) / 1e12,
        "GiB kept": kept / GIB,
    }


def count(config: ModelConfig, spans: Tensor, rows: int, split: int = 1, precision: str = "bf16") -> Step:
    """Count one update with fused attention of a model whose heads have these spans, (N, H) in tokens without the ramp.

    `rows` are those of one process, taken in `split` slices one after the other.
    """
    effective = (spans + config.ramp).clamp(max=config.max_span)
    elements = rows * config.block_size * (effective.sum().item() + config.memory_size * effective.numel())
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    with FakeTensorMode(), _as_on_a_gpu() as tracer:
        with tracer:
            model = Transformer(replace(config, attention="fused"), profiles.VOCAB_SIZE)
            limits = model.limits(effective.tolist(), SLACK)
            update = optimizer.build(OptimizerConfig("adagrad", 0.07, 0.03), model.parameters())
            tokens = torch.zeros(rows, config.block_size + 1, dtype=torch.int64)
            size = config.hidden_size
            caches = [
                [torch.zeros(rows // split, model.cache_length(heads), size, dtype=kind) for heads in limits]
                for _ in range(split)
            ]
            tracer.start(model.parameters())
            for index, part in enumerate(tokens.chunk(split)):
                tracer.phase = "forward"
                with tracer.keeping(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    nll, caches[index] = model(part[:, :-1], part[:, 1:], caches[index], limits)
                    loss = (nll.mean() + 5e-7 * model.span_penalty()) / split
                del nll
                tracer.phase = "backward"
                loss.backward()
            tracer.phase = "update"
            update.step()
            model.clamp_spans_(model.highest_fractions(limits))
            update.zero_grad()
    head_size = config.hidden_size // config.num_heads
    return tracer.step(elements * 2 * head_size)


class _Tracer(TorchDispatchMode):
    """Notes what is launched, and which storages live."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.launches: list[Launch] = []
        self.kept: Counter[str] = Counter()
        self.live = self.peak = 0
        self.makers: dict[int, str] = {}  # of each living storage, the part that made it
        self.parameters: set[int] = set()

    def start(self, parameters: Iterator[Tensor]) -> None:
        """Forget what was launched to make the model."""
        self.launches.clear()
        self.parameters = {_storage(parameter) for parameter in parameters}
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = _tensors((args, kwargs)), _tensors(result)
        launch = self._launch(func, args, given, made)
        if launch.count:
            self.launches.append(launch)
        self._watch(made, launch.part)
        return result

    def _launch(self, func: Any, args: tuple[Any, ...], given: list[Tensor], made: list[Tensor]) -> Launch:
        name, storages = func.overloadpacket.__name__, set(map(_storage, given))
        written = made or [
            tensor
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _tensors(value)
        ]
        is_view = not func._schema.is_mutable and all(_storage(tensor) in storages for tensor in made)
        nothing = is_view or not written or "empty" in name or (name == "copy_" and _same(*given[:2]))
        read = given[1:] if name in OVERWRITING else given
        if name in PICKING:
            read = [*made, *given[1:]]
        flops = (
            flop_registry[func.overloadpacket](*args, out_val=made[0]) if func.overloadpacket in flop_registry else 0
        )
        launches = SEVERAL.get(name, 1)
        if name.startswith("_foreach"):
            launches = ceil(sum(ceil(tensor.numel() / BLOCK) for tensor in args[0]) / BLOCKS)
        return Launch(self.phase, name, 0 if nothing else launches, sum(map(_bytes, [*read, *written])), flops)

    def kernel(self, kernel: Any, *args: Any, **kwargs: Any) -> None:
        """Note a launch of Triton's."""
        total = sum(map(_bytes, _tensors((args, kwargs))))
        self.launches.append(Launch(self.phase, kernel.fn.__name__, 1, total, 0))

    def _watch(self, tensors: list[Tensor], part: str) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.makers:
                self.makers[storage._cdata] = part
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)

    def _free(self, storage: int, size: int) -> None:
        del self.makers[storage]
        self.live -= size

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Within it, note what is saved for the backward pass."""
        seen = set(self.parameters)

        def save(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in seen:
                seen.add(_storage(tensor))
                self.kept[self.makers[_storage(tensor)]] += tensor.untyped_storage().nbytes()
            return tensor

        self.kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            yield

    def step(self, element: float) -> Step:
        """Return what was noted; `element`: operations of one product with all that attention looks at."""
        names = Counter(launch.name for launch in self.launches)
        launches = [
            replace(launch, flops=PRODUCTS[launch.name] * element / names[launch.name])
            if launch.name in PRODUCTS
            else launch
            for launch in self.launches
        ]
        return Step(launches, dict(self.kept), self.peak)


@contextmanager
def _as_on_a_gpu() -> Iterator[_Tracer]:
    """Within it, Triton's launches are noted and not made, and dropout is one operator, as on a GPU."""
    from triton.runtime.jit import JITFunction

    tracer = _Tracer()

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        tracer.kernel(kernel, *args, **kwargs)

    def drop(module: nn.Dropout, x: Tensor) -> Tensor:
        return torch.native_dropout(x, module.p, True)[0] if module.training and module.p else x

    with (
        patch.object(attention, "why_not_fused", lambda *_: None),
        patch.object(JITFunction, "run", launch),
        patch.object(nn.Dropout, "forward", drop),
        patch.dict(optimizer.AT_ONCE, cpu=optimizer.AT_ONCE["cuda"]),
    ):
        yield tracer


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    """Return what a tensor has in memory: what is broadcast is there once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return prod(sizes) * tensor.element_size()


def _same(left: Tensor, right: Tensor) -> bool:
    """Return whether a copy between them would change nothing, which torch sees."""
    places = [(_storage(x), x.storage_offset(), x.stride()) for x in (left, right)]
    return places[0] == places[1]
