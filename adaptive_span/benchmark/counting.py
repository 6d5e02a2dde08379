"""Count what a training step asks of a GPU, on a machine that needs none.

The step runs on FakeTensors, which have shapes and types but no numbers, as if Triton could launch here. Each operator
and each kernel is noted with the bytes that it reads and writes and with its floating-point operations; each storage
with the time that it lives, which gives the memory at the height of the step.
"""

import math
import re
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from adaptive_span.attention import dispatch, layout, span_bounds
from adaptive_span.benchmark import cost_model, profiles
from adaptive_span.benchmark.cost_model import Card, Demand
from adaptive_span.benchmark.workloads import Row, Settings
from adaptive_span.config.optimizer_schema import OptimizerConfig
from adaptive_span.config.schema import Config
from adaptive_span.distributed import Process
from adaptive_span.model import elementwise
from adaptive_span.model.cache import HiddenStateCache
from adaptive_span.model.transformer import Transformer
from adaptive_span.training import optimizer
from adaptive_span.training.state import TrainState

GIB = 2**30

# The first pattern that fits a launch's name says to which part of the table it belongs.
PARTS = {
    "attention kernels": "^(forward|query|key_value|delta|memory)_kernel",
    "optimizer": "_foreach(?!_copy)|adagrad",
    "matrix products": "^(mm|addmm|bmm|baddbmm)_?$",
    "layer norms": "layer_norm|^norm_",
    "dropout": "dropout",
    "ReLU": "relu|threshold",
    "heads in order": "index_select|gather|scatter",
    "joining": "^cat$|zeros|fill|zero_",
    "copies and casts": "copy|clone",
    "sums": "^(sum|mean|linalg_vector_norm)$",
    "input and output": "embedding|softmax|nll",
    "elementwise": "",
}

# Operators that launch more than one kernel on a GPU, as a profiler shows them.
SEVERAL = {"native_layer_norm_backward": 2, "slice_backward": 2, "select_backward": 2, "embedding_dense_backward": 4}
FREE = "empty|lift_fresh"  # what has memory alone, and constants, which are made for the first step
PICKING = ("gather", "index_select", "embedding")  # read of their first argument as much as they return
IN_PLACE = {"relu_dropout_kernel": "inner", "relu_dropout_backward_kernel": "grad"}  # what kernels read and write
OVERWRITING = ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_")  # do not look at what was there
BLOCK, BLOCKS = 2**16, 320  # numbers of a block, and blocks of a launch, of torch's kernels for lists of tensors

# Products of each element that attention looks at, each of 2 D operations: kernels make some of them anew.
PRODUCTS = {"forward_kernel": 2, "query_kernel": 3, "key_value_kernel": 4}


@dataclass(frozen=True)
class Launch:
    """One kernel, or the kernels of one operator, with what they read, write and compute."""

    name: str
    count: int
    bytes: int
    flops: float

    @property
    def part(self) -> str:
        """The part of the table that it belongs to."""
        return next(part for part, pattern in PARTS.items() if re.search(pattern, self.name))


@dataclass(frozen=True)
class Step:
    """All that a training step asks for."""

    launches: list[Launch]
    kept: dict[str, int]  # bytes held for the backward pass, by the part of the launch that made them
    peak: int  # bytes held at the height of the step, parameters, gradients and optimizer state included
    parameters: int
    visited: float  # queries times keys that attention visits, the edges of its tiles included

    @property
    def parts(self) -> dict[str, Demand]:
        """What each part of the table asks for."""
        totals = dict.fromkeys(PARTS, Demand(0, 0, 0))
        for launch in self.launches:
            totals[launch.part] += Demand(launch.count, launch.bytes, launch.flops)
        return totals

    @property
    def whole(self) -> Demand:
        """What all of it asks for."""
        return sum(self.parts.values(), Demand(0, 0, 0))


def table(settings: Settings, split: int, card: Card) -> dict[str, Row]:
    """Count a step, and compute what each part of it takes on a GPU.

    Returns:
        Per part: launches, GB moved, TFLOP, GiB kept for the backward pass, and milliseconds.
    """
    model = replace(profiles.sizes(settings.model), dropout=settings.dropout)
    config = Config(model=model, optimizer=OptimizerConfig("adagrad", 0.07, 0.03))
    config.hardware.precision = settings.precision
    config.train.steps, config.train.warmup_steps, config.train.span_penalty = 1, 0, 5e-7
    config.train.batch_size, config.train.batch_split = settings.batch_size, split
    step = count(config, profiles.spans(settings.profile, model, settings.scale), profiles.VOCAB_SIZE)
    times = cost_model.seconds(step.parts, step.visited, model.head_size, settings.precision, card)
    rows = {
        part: _row(asked, step.kept.get(part, 0), times[part], card)
        for part, asked in sorted(step.parts.items(), key=lambda part: -times[part[0]])
        if asked.launches
    }
    whole = _row(step.whole, sum(step.kept.values()), sum(times.values()), card)
    height: Row = dict.fromkeys(whole) | {"GiB kept": step.peak / GIB}
    return rows | {"all": whole, "height of the step": height}


def _row(asked: Demand, kept: int, seconds: float, card: Card) -> Row:
    counted = {"launches": asked.launches, "GB": asked.bytes / 1e9, "TFLOP": asked.flops / 1e12, "GiB kept": kept / GIB}
    return {**counted, f"ms on {card.name}": 1000 * seconds}


def count(config: Config, spans: Tensor, vocab_size: int) -> Step:
    """Count one update of a process that works alone, with fused attention if `config` leaves the choice.

    Args:
        config: The training.
        spans: z of each head (N, H), in tokens, without the ramp.
        vocab_size: Symbols of the text.
    """
    model, train = config.model, config.train
    if model.attention == "auto":
        config = replace(config, model=replace(model, attention="fused"))
    effective = (spans + model.ramp).clamp(max=model.max_span)
    tokens = np.zeros(train.batch_size * (2 * model.block_size + 1), dtype=np.int16)
    corpus: Any = SimpleNamespace(vocab_size=vocab_size, tokens=lambda split: tokens)
    known: Any = SimpleNamespace(tolist=effective.tolist)  # which FakeTensors are not
    words = _words_by_frequency([*model.cutoffs, vocab_size])
    with _nothing_remembered(), FakeTensorMode(), _as_on_a_gpu() as tracer, tracer, words:
        with patch.object(Transformer, "spans", lambda model: known), patch.object(Transformer, "to"):
            training = TrainState(config, corpus, Process(0, 1, torch.device("cpu")))
        for group in training.optimizer.param_groups:
            group["foreach"] = True  # which torch's own take on a GPU alone
        _fill(training)
        tracer.start(training.model.parameters())
        training.update()
    seen, heads, rows = effective.sum().item(), effective.numel(), train.batch_size
    product = 2 * model.head_size * cost_model.visited(model, seen, heads, rows, edges=0)
    visited = cost_model.visited(model, seen, heads, rows)
    return Step(tracer.priced(product), dict(tracer.kept), tracer.peak, tracer.parameters, visited)


def _fill(training: TrainState) -> None:
    """Give a training the caches that it has after a while."""
    rows = training.config.train.batch_size // training.config.train.batch_split
    kind = torch.bfloat16 if training.config.hardware.precision == "bf16" else torch.float32
    shapes = [
        (rows, training.model.cache_length(heads), training.config.model.hidden_size) for heads in training.span_bounds
    ]
    training.caches = [HiddenStateCache([torch.empty(shape, dtype=kind) for shape in shapes]) for _ in training.caches]


@contextmanager
def _nothing_remembered() -> Iterator[None]:
    """Clear cached functions before and after: FakeTensors must not meet real tensors there."""
    _forget()
    try:
        yield
    finally:
        _forget()


def _forget() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("adaptive_span."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


@contextmanager
def _words_by_frequency(bounds: Sequence[int]) -> Iterator[None]:
    """Give each cluster of an adaptive softmax as many words as Zipf's law has it."""
    ends = [0.0, *(math.log(bound + 1) / math.log(bounds[-1] + 1) for bound in bounds)]

    def bincount(clusters: Tensor, minlength: int) -> Any:
        places = [round(end * clusters.numel()) for end in ends]
        return SimpleNamespace(tolist=lambda: [high - low for low, high in pairwise(places)])

    with patch.object(Tensor, "bincount", bincount):
        yield


class _Recording:
    """Stand for a CUDA graph whose second step is recorded."""

    def run(self, key: object, anywhere: object, in_place: Callable[[], Any]) -> Any:
        return in_place()


def _bounds(training: TrainState) -> span_bounds.SpanBounds:
    return span_bounds.fresh(training.spans, training.config.model.max_span)


class _Tracer(TorchDispatchMode):
    """Note what is launched, which storages live, and which of them the backward pass waits for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: list[Launch] = []
        self.makers: dict[int, str] = {}  # of each living storage, the part that made it
        self.live = self.peak = 0
        self.saved: dict[int, int] = {}  # of those saved for the backward pass, the bytes
        self.kept: Counter[str] = Counter()  # when these were most
        self.others: set[int] = set()  # that are there in any case: parameters
        self.parameters = 0

    def start(self, parameters: Iterator[Tensor]) -> None:
        """Forget what it took to make the model."""
        self.launches.clear()
        all_of_them = list(parameters)
        self.others = set(map(_storage, all_of_them))
        self.parameters = sum(parameter.numel() for parameter in all_of_them)
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
        nothing = is_view or not written or re.search(FREE, name) or (name == "copy_" and _same(*given[:2]))
        read = given[1:] if name in OVERWRITING else given
        if name in PICKING:
            read = [*made, *given[1:]]
        product = getattr(torch.ops.aten, name.rstrip("_"), None)  # which counts the same where it writes in place
        flops = flop_registry[product](*args, out_val=made[0]) if product in flop_registry else 0
        launches = SEVERAL.get(name, 1)
        if name.startswith("_foreach"):
            launches = math.ceil(sum(math.ceil(tensor.numel() / BLOCK) for tensor in args[0]) / BLOCKS)
        return Launch(name, 0 if nothing else launches, sum(map(_bytes, [*read, *written])), flops)

    def kernel(self, kernel: Any, *args: Any, **kwargs: Any) -> None:
        """Record a launch of Triton's."""
        total = sum(map(_bytes, _tensors((args, kwargs))))
        total += _bytes(kwargs[IN_PLACE[kernel.fn.__name__]]) if kernel.fn.__name__ in IN_PLACE else 0
        self.launches.append(Launch(kernel.fn.__name__, 1, total, 0))

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
        self.saved.pop(storage, None)

    def save(self, tensor: Tensor) -> Tensor:
        """Record what is saved for the backward pass."""
        storage = _storage(tensor)
        if storage not in self.saved and storage not in self.others:
            self.saved[storage] = tensor.untyped_storage().nbytes()
            if sum(self.saved.values()) > self.kept.total():
                self.kept.clear()
                for each, size in self.saved.items():
                    self.kept[self.makers[each]] += size
        return tensor

    def priced(self, product: float) -> list[Launch]:
        """Return the launches, those of attention with their share of so many operations in one of its products."""
        names = Counter(launch.name for launch in self.launches)
        return [
            replace(launch, flops=PRODUCTS[launch.name] * product / names[launch.name])
            if launch.name in PRODUCTS
            else launch
            for launch in self.launches
        ]


@contextmanager
def _as_on_a_gpu() -> Iterator[_Tracer]:
    """Let a step take the paths that it takes on a GPU; launches of Triton are recorded and not made."""
    from triton.runtime.jit import JITFunction

    from adaptive_span.model.elementwise import adagrad, kernels

    tracer = _Tracer()

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        tracer.kernel(kernel, *args, **kwargs)

    def drop(module: nn.Dropout, x: Tensor) -> Tensor:
        return torch.native_dropout(x, module.p, True)[0] if module.training and module.p else x

    def update(params: list[Tensor], grads: list[Tensor], sums: list[Tensor], norms: Tensor, *_: Any) -> None:
        """Record an update whose kernel finds tensors by their addresses, which FakeTensors lack."""
        torch._foreach_add_(list(torch.zeros(len(grads)).unbind()), [0.0] * len(grads))
        tracer.kernel(kernels.adagrad_kernel, params, grads, sums, params, sums, norms)

    with (
        torch.autograd.graph.saved_tensors_hooks(tracer.save, lambda tensor: tensor),
        patch.object(dispatch, "why_not_fused", lambda *_: None),
        patch.object(elementwise, "in_triton", lambda _: True),
        patch.object(layout, "puts_positions_first", lambda _: True),
        patch.object(JITFunction, "run", launch),
        patch.object(TrainState, "_next_span_bounds", _bounds),
        patch.object(TrainState, "_step_graph", lambda training: _Recording()),
        patch.object(adagrad, "update", update),
        patch.object(nn.Dropout, "forward", drop),
        patch.dict(optimizer.AT_ONCE, cpu=optimizer.AT_ONCE["cuda"]),
    ):
        yield tracer


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor in memory; what is broadcast counts once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(sizes) * tensor.element_size()


def _same(left: Tensor, right: Tensor) -> bool:
    """Return whether a copy between them would change nothing, which torch sees."""
    places = [(_storage(x), x.storage_offset(), x.stride()) for x in (left, right)]
    return places[0] == places[1]
