"""The state of a training and the one update that advances it: truncated backpropagation through time with a cache.

M is the block size, b the rows of this process, P the number of parameters, N the layers, H the heads.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adaptive_span.attention import span_bounds
from adaptive_span.attention.span import SLACK
from adaptive_span.attention.span_bounds import SpanBounds
from adaptive_span.checkpoint import files
from adaptive_span.config.schema import Config
from adaptive_span.data import stream
from adaptive_span.data.corpus import Corpus
from adaptive_span.distributed import Process, autocast
from adaptive_span.errors import UserError
from adaptive_span.hardware import step_graph
from adaptive_span.hardware.step_graph import StepGraph
from adaptive_span.model.cache import HiddenStateCache
from adaptive_span.model.low_precision import low_precision
from adaptive_span.model.transformer import Transformer
from adaptive_span.training import optimizer, random_state
from adaptive_span.training.flat_gradients import FlatGradients
from adaptive_span.training.frozen import freeze_weights
from adaptive_span.training.schedule import learning_rate
from adaptive_span.training.step_metrics import StepMetrics
from adaptive_span.training.weight_average import KEY, WeightAverage


class TrainState:
    """Hold everything that an update changes: model, its average, optimizer, place in the text, caches.

    After the same number of updates it is the same to the last bit, however often it was saved and loaded in between.
    """

    def __init__(self, config: Config, corpus: Corpus, process: Process):
        self.config, self.process, train = config, process, config.train
        random_state.seed(train.seed)  # the same weights in every process
        self.model = Transformer(config.model, corpus.vocab_size, config.hardware.activation_checkpointing)
        self.model.to(process.device)
        if train.freeze == "weights":
            freeze_weights(self.model)
        random_state.seed(train.seed + 1 + process.rank)  # and dropout of its own
        self._named = [(name, each) for name, each in self.model.named_parameters() if each.requires_grad]
        self.optimizer = optimizer.build(config.optimizer, self._named)
        self.average = WeightAverage(self.model, train.average) if train.average else None
        self.graph = self._step_graph()
        self.gradients: FlatGradients | None = None  # of several processes whose steps are graphs
        self.parallel = self._parallel()

        block_size = config.model.block_size
        rows = stream.rows(corpus.tokens("train"), train.batch_size, block_size, "train")
        self.stream = stream.Stream(rows[process.share(len(rows))], block_size, train.seed, process.device)
        self.step = 0
        self.caches = self._empty_caches()  # one a slice of the batch
        self.nats = 0.0  # mean over this process's tokens, summed over the updates since the last reading
        self.updates = 0
        self.grad_norm = 0.0
        self.block = torch.zeros(0)  # (b, M + 1) of the present step, where a graph looks for it
        self._metrics: StepMetrics | None = None  # of the last update, on its way to the host
        self._grad_norms = torch.zeros(0)  # (P,) of the last update, on the device
        self.read_spans()

    def learning(self) -> list[nn.Parameter]:
        """Return the parameters that updates change."""
        return [parameter for _, parameter in self._named]

    def _parallel(self) -> nn.Module:
        """Return the model as it is run: compiled block by block, its gradients averaged over the processes."""
        if self.config.hardware.compile:
            for block in (*self.model.attention_blocks, *self.model.feed_forward_blocks):
                block.compile()
        if self.process.world_size == 1:
            return self.model
        if self.graph is not None:
            self.gradients = FlatGradients(self.learning())
            return self.model
        return DistributedDataParallel(self.model, gradient_as_bucket_view=True)

    def _step_graph(self) -> StepGraph | None:
        """Return a recording of the step, where there is a GPU to replay it."""
        wanted, _ = step_graph.choose(self.config.hardware.graphs, self.process.device)
        return StepGraph() if wanted else None

    def _empty_caches(self) -> list[HiddenStateCache]:
        train = self.config.train
        size = train.batch_size // self.process.world_size // train.batch_split
        return [self.model.empty_cache(size) for _ in range(train.batch_split)]

    def update(self) -> None:
        """Run one step: forward, backward, update, clamp, average.

        Its metrics go to the host in one transfer, which the next step collects, so that nobody waits for the device.
        Therefore the bounds of a step are those of the spans before the last update, with some room. A span that would
        outgrow them is held there for one step.
        """
        self.model.train()
        block, jumped = self.stream.next()
        if jumped:  # to where nothing is known of the text before
            for cache in self.caches:
                cache.zero_()
        rate = learning_rate(self.step + 1, self.config.optimizer.lr, self.config.train)
        optimizer.set_rate(self.optimizer, rate)
        if self.graph is None:
            nats, grad_norms = self._compute(block)
        else:
            nats, grad_norms = self._compute_as_graph(self.graph, block)
        self.step += 1
        self.collect()
        self._bound_by(self._next_span_bounds())
        self.model.clamp_spans_(self.highest)
        if self.average is not None:  # behind a recorded step, which updates the weights in place
            self.average.update(self.step)
        figures = torch.stack([nats, torch.linalg.vector_norm(grad_norms)])
        self._metrics, self._grad_norms = StepMetrics(self.step, figures, self.model.spans()), grad_norms

    def _compute(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Update the weights from a block of text, (b, M + 1), without a value that the host would wait for.

        Returns:
            The mean loss before the update, in nats per token, and the norm of each gradient, (P,).
        """
        nats, self.caches = self._backward(block)
        return nats, self._apply()

    def _apply(self) -> Tensor:
        """Update the weights from their gradients, and return the norm of each, (P,)."""
        if self.gradients is not None:
            self.gradients.average_()
        grad_norms = optimizer.update(self.optimizer, self.config.optimizer, self.learning())
        if self.gradients is None:
            self.optimizer.zero_grad()
        return grad_norms

    def _compute_as_graph(self, graph: StepGraph, block: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same by a recording, which reads the block and the caches in place, and writes the next caches there.

        Several processes add up their gradients, and update, right behind it.
        """
        if self.block.shape != block.shape:
            self.block = torch.empty_like(block)
        self.block.copy_(block)

        def anywhere() -> list[Tensor]:
            nats, self.caches = self._backward(block)
            return [nats] if self.gradients else [nats, self._apply()]

        def in_place() -> list[Tensor]:
            nats, caches = self._backward(self.block)
            for present, following in zip(self.caches, caches, strict=True):
                present.copy_(following)
            return [nats] if self.gradients else [nats, self._apply()]

        sizes = [cache.sizes() for cache in self.caches]
        nats, *grad_norms = graph.run((self.span_bounds, sizes), anywhere, in_place)
        return nats, grad_norms[0] if grad_norms else self._apply()

    def _backward(self, block: Tensor) -> tuple[Tensor, list[HiddenStateCache]]:
        """Compute the gradients of the mean over the batch, and return that mean of the nats and the next caches."""
        with low_precision(self.model, self.config.hardware.precision):
            return self._backward_by_slices(block)

    def _backward_by_slices(self, block: Tensor) -> tuple[Tensor, list[HiddenStateCache]]:
        train, nats, caches = self.config.train, [], []
        if self.gradients is not None:
            self.gradients.zero_()
        slices = block.chunk(train.batch_split)
        for index, (part, cache) in enumerate(zip(slices, self.caches, strict=True)):
            with self._no_sync() if index < len(slices) - 1 else nullcontext():
                with autocast(self.config.hardware, self.process.device):
                    nll, cache = self.parallel(part[:, :-1], part[:, 1:], cache, self.span_bounds)
                loss = nll.mean() + train.span_penalty * self.model.span_penalty()
                (loss / train.batch_split).backward()
            nats.append(nll.detach().mean())
            caches.append(cache)
        return torch.stack(nats).mean(), caches

    def _no_sync(self) -> AbstractContextManager[Any]:
        return self.parallel.no_sync() if isinstance(self.parallel, DistributedDataParallel) else nullcontext()

    def collect(self) -> None:
        """Take in what the last update measured: `spans`, `grad_norm`, nats. A second call adds nothing.

        Raises:
            UserError: The loss or a gradient is not finite.
        """
        if self._metrics is None:
            return
        step, (mean, self.grad_norm), self.spans = self._metrics.collect()
        self._metrics = None
        if not math.isfinite(mean):
            raise self.diverged(f"the loss is {mean} at step {step}, before any gradient")
        if not math.isfinite(self.grad_norm):
            raise self.diverged(f"the gradient of {self._first_bad_gradient()} is not finite at step {step}")
        self.nats += mean
        self.updates += 1

    def _first_bad_gradient(self) -> str:
        """Return the name of the first parameter whose gradient was not finite in the last update that was read."""
        names = [name for name, _ in self._named]
        finite = self._grad_norms.isfinite().tolist()
        return names[finite.index(False)] if False in finite else "all parameters together"

    def diverged(self, what: str) -> UserError:
        """Return the error of a training whose numbers are not finite any more."""
        return UserError(
            f"the training has diverged: {what}; lower optimizer.lr={self.config.optimizer.lr}, or lengthen "
            f"train.warmup_steps={self.config.train.warmup_steps}; the checkpoints are from before it"
        )

    def weights(self) -> dict[str, Tensor]:
        """Return the weights as a checkpoint may hold them. Raises `UserError` where one is not finite."""
        return self._finite(self.model.state_dict(), "")

    def averaged_weights(self) -> dict[str, Tensor]:
        """Return their average likewise; {} where none is kept."""
        return {} if self.average is None else self._finite(self.average.model.state_dict(), "the average of ")

    def _finite(self, weights: dict[str, Tensor], whose: str) -> dict[str, Tensor]:
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise self.diverged(f"{whose}{name} is not finite after step {self.step}")
        return weights

    def read_spans(self) -> None:
        """Take the spans and their bounds from weights that have been replaced."""
        self.spans = self.model.spans().tolist()  # (N, H) effective spans in tokens, on the host
        self.span_bounds: SpanBounds = []
        self._bound_by(self._next_span_bounds())

    def _next_span_bounds(self) -> SpanBounds:
        """Return bounds on the spans of the next step: on a GPU such as seldom change, elsewhere the closest ones."""
        if self.process.device.type != "cuda":
            return self.model.span_bounds(self.spans, SLACK)
        model = self.config.model
        return span_bounds.renewed(self.span_bounds, self.spans, model.max_span, model.block_size)

    def _bound_by(self, span_bounds: SpanBounds) -> None:
        """Let no head of the next steps see further than that."""
        if span_bounds != self.span_bounds:
            self.span_bounds, self.highest = span_bounds, self.model.highest_fractions(span_bounds)

    def mean_loss(self) -> float:
        """Return nats per token, the mean over all processes and all updates since the last call."""
        self.collect()
        (total,) = self.process.sum([self.nats / self.updates / self.process.world_size])
        self.nats, self.updates = 0.0, 0
        return total

    def state_dict(self) -> files.State:
        """Return the whole state in the main process, whatever the number of processes. All of them must call it."""
        self.collect()
        layers = zip(*(cache.layers for cache in self.caches), strict=True)  # of the slices of each layer
        cache = [self.process.gather_rows(torch.cat(slices)) for slices in layers]
        own = {"random": random_state.random_state(self.process.device), "nats": self.nats}
        average = {KEY: self.averaged_weights()} if self.average else {}
        return {
            "step": self.step,
            "model": self.weights(),
            "optimizer": optimizer.state_dict(self.optimizer),
            "stream": self.stream.state_dict(),
            "cache": cache,
            "limits": self.span_bounds,
            "processes": self.process.gather(own),
            "updates": self.updates,
        } | average

    def load_state_dict(self, state: files.State) -> None:
        """Resume from what `state_dict` returned, in any number of processes that share the batch."""
        process, train = self.process, self.config.train
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.model.load_state_dict(state[KEY])
        optimizer.load_state_dict(self.optimizer, state["optimizer"])
        self.stream.load_state_dict(state["stream"])
        layers = [x[process.share(len(x))].to(process.device).chunk(train.batch_split) for x in state["cache"]]
        self.caches = [HiddenStateCache(list(slices)) for slices in zip(*layers, strict=True)]
        self.read_spans()
        self._bound_by(state["limits"])
        self.updates = state["updates"]
        processes = state["processes"]
        if len(processes) == process.world_size:
            self.nats = processes[process.rank]["nats"]
            random_state.restore_random_state(processes[process.rank]["random"], process.device)
        else:  # the dropout of no process can be resumed; each starts one that no step has seen
            self.nats = sum(own["nats"] for own in processes) / len(processes)
            random_state.seed(hash((train.seed, self.step, process.rank)) % 2**63)
