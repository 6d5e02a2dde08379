"""Train a run: step, log, validate, save, stop; and resume where it was stopped."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from adaptive_span.attention.span_bounds import SpanBounds
from adaptive_span.checkpoint import files
from adaptive_span.checkpoint.paths import BEST, BEST_AVERAGE, CHECKPOINTS, step_path
from adaptive_span.checkpoint.stored_model import model_of
from adaptive_span.config import plugins
from adaptive_span.config.registry import TRACKERS
from adaptive_span.config.schema import Config
from adaptive_span.data import stream
from adaptive_span.data.corpus import Corpus
from adaptive_span.distributed import Process, autocast, available_memory, peak_memory, process_group
from adaptive_span.errors import UserError, check_batch
from adaptive_span.evaluation import report, scoring, token_losses
from adaptive_span.evaluation.result import Result
from adaptive_span.hardware import capacity, step_graph
from adaptive_span.hardware.matrix_peak import matrix_peak
from adaptive_span.hardware.precision import tf32
from adaptive_span.model import flops
from adaptive_span.model.low_precision import low_precision
from adaptive_span.model.transformer import Transformer
from adaptive_span.reporting import scores
from adaptive_span.reporting.progress import TrainingProgress
from adaptive_span.reporting.run_directory import claimed, prune, refuse_changes, write_config
from adaptive_span.reporting.tracking import METRICS, Metrics, Tracker
from adaptive_span.storage.stored import lookup
from adaptive_span.storage.writing import explain_disk_errors
from adaptive_span.terminal.output import Output
from adaptive_span.terminal.printing import print_fields, print_line
from adaptive_span.terminal.program import sigterm_as_exit
from adaptive_span.training import environment, out_of_memory, start
from adaptive_span.training.header import header, phases
from adaptive_span.training.interruption import Interruption
from adaptive_span.training.schedule import learning_rate
from adaptive_span.training.settle import begun_with, settle
from adaptive_span.training.state import TrainState
from adaptive_span.training.watchdog import Watchdog
from adaptive_span.training.weight_average import average_in

Judge = Callable[[int, Metrics], bool]  # of steps and what was measured there: whether to train no further
SCORING_BLOCK = 128  # tokens: shorter blocks would leave the processor waiting, and the exact score is the same


def train(config: Config, command: Sequence[str] = (), judge: Judge | None = None) -> Result | None:
    """Train the run of `config.run.dir` from its newest checkpoint to its last step, and score it.

    Call it in every process of the run.

    Args:
        config: A checked configuration, with `run.dir`.
        command: The words that asked for it, for the run's record.
        judge: Asked in the main process after each validation but the last; it may end the run early.

    Returns:
        The result in the main process, None in the others, and where the run was ended early.

    Raises:
        UserError: The configuration, the text, the directory or the machine does not allow it.
        SystemExit: A signal has stopped it; everything is saved.
    """
    plugins.load(config.plugins)
    _ = TRACKERS[config.tracking.name]  # a package that it lacks is a sentence before anything is made
    directory = Path(config.run.dir or "")
    with process_group(config.hardware) as process, sigterm_as_exit(), ExitStack() as stack:
        check_batch("train.batch_size", config.train.batch_size, process.world_size, config.train.batch_split)
        capacity.check_memory(config, 0, process.world_size, available_memory(process))
        if process.is_main:
            stack.enter_context(claimed(directory))
            Output.notice = f"the training continues, and its numbers are in {directory / METRICS}"
        process.barrier()
        stack.enter_context(environment.deterministic(config.train.deterministic))
        return _train(config, process, directory, command, judge)


def _train(
    config: Config, process: Process, directory: Path, command: Sequence[str], judge: Judge | None
) -> Result | None:
    saved, problems = files.newest(directory / CHECKPOINTS)
    config, settled = settle(config, process, begun_with(saved))
    weights = start.other_weights(config, saved)
    corpus = start.open_corpus(config, saved, weights, process)
    capacity.check_memory(config, corpus.vocab_size, process.world_size, available_memory(process))
    trainer = Trainer(config, corpus, process, directory, command)
    if saved is not None:
        trainer.resume(saved, problems)
    elif weights is not None:
        start.begin(trainer.state, weights)
    step, total = trainer.state.step, config.train.total_steps
    if step >= total and (evaluation := scores.exact_score(directory)) is not None:
        return Result(directory, step, evaluation) if process.is_main else None
    with trainer.tracked():
        if step < total:
            if trainer.tracker:
                print_fields(header(config, corpus, trainer.parameters, trainer.learning, settled, trainer.tracker))
                print_line(phases(config.train))
            with Interruption() as interruption:
                if trainer.fit(interruption, judge):
                    return None
        return trainer.score()


class Trainer:
    """A training state and the directory that it is kept in."""

    def __init__(self, config: Config, corpus: Corpus, process: Process, directory: Path, command: Sequence[str]):
        self.command = command
        self.config, self.corpus, self.process, self.directory = config, corpus, process, directory
        self.checkpoints = directory / CHECKPOINTS
        self.best = self.best_average = math.inf  # nats per token on the validation part
        self.run_id: str | None = None  # the tracker's
        self.tracker: Tracker | None = None  # in the main process, as is what shows the progress
        self.progress: TrainingProgress | None = None
        self.peak = math.inf  # operations per second of matrix products, of all processes
        valid = corpus.tokens("valid")
        self.validation_rows = stream.rows(valid, config.train.batch_size, config.model.block_size, "valid")
        self.state = TrainState(config, corpus, process)
        self.graphs, _ = step_graph.choose(config.hardware.graphs, process.device)

    def fit(self, interruption: Interruption, judge: Judge | None = None) -> bool:
        """Update until the last step. A signal ends the process after the step at hand, with everything saved.

        Returns:
            Whether the judge has ended the run before, with everything saved.
        """
        state, process, total = self.state, self.process, self.config.train.total_steps
        with ExitStack() as stack:
            watchdog = self._enter(stack)
            clock, since = time.perf_counter(), state.step
            while state.step < total:
                watchdog.step()
                state.update()
                step, signal = state.step, interruption.agreed(process)
                validating = step % self.config.validation.every == 0 or step == total
                if validating or step % self.config.log.every == 0:
                    metrics = self._metrics(validating, time.perf_counter() - clock, step - since)
                    if self.tracker and self.progress:
                        self.tracker.log(step, metrics, state.spans)
                        self.progress.show(step, metrics, state.spans)
                    clock, since = time.perf_counter(), step
                ended = validating and step < total and judge is not None and self._is_ended_by(judge, metrics)
                if self.progress:
                    self.progress.advance(step)
                if signal or ended or step == total or step % self.config.checkpoint.every == 0:
                    self._save()
                if signal and step < total:
                    self._stop(signal)
                if ended:
                    self._prune()
                    return True
        if signal := interruption.agreed(process):  # also while it was validated and saved for the last time
            self._stop(signal)
        return False

    def _is_ended_by(self, judge: Judge, metrics: Metrics) -> bool:
        """Return in every process what the main process is told."""
        return bool(self.process.max(int(self.process.is_main and judge(self.state.step, metrics))))

    def _prune(self) -> None:
        if self.progress:
            self.progress.close()
            step, total = self.state.step, self.config.train.total_steps
            prune(self.directory, step, total)
            print_line(f"pruned after step {step} of {total}, and saved: the search's other runs validate better there")

    def _enter(self, stack: ExitStack) -> Watchdog:
        """Set up what surrounds the loop: precision, progress, advice on memory, and the watchdog."""
        config, process, state = self.config, self.process, self.state
        stack.enter_context(tf32(config.hardware.precision == "tf32"))
        if process.is_main:
            self._forget_scores()
            self.peak = process.world_size * matrix_peak(process.device, config.hardware.precision)
            self.progress = stack.enter_context(self._progress())
        stack.enter_context(out_of_memory.explained(config, process, self.parameters, lambda: state.span_bounds))
        watchdog = Watchdog(process.rank, 60 * config.hardware.timeout)
        if process.world_size > 1:
            stack.enter_context(watchdog)
        return watchdog

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(p.numel() for p in self.state.model.parameters())

    @property
    def learning(self) -> int:
        """How many of them updates change."""
        return sum(p.numel() for p in self.state.learning())

    def _progress(self) -> TrainingProgress:
        best = math.inf
        if math.isfinite(self.best):
            best = next(iter(scoring.quoted(self.best, self.corpus, "valid").values()))
        return TrainingProgress(self.state.step, self.config.train.total_steps, self.config.model, best)

    def _stop(self, signal: int) -> NoReturn:
        if self.progress:
            self.progress.close()
            total = self.config.train.total_steps
            print_line(f"stopped after step {self.state.step} of {total}, and saved; the same command resumes it")
        raise SystemExit(128 + signal)

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Record in the main process what is done within: in the run's directory, and with the run's tracker."""
        if not self.process.is_main:
            yield
            return
        write_config(self.config, self.directory)
        with explain_disk_errors(self.checkpoints):
            self.checkpoints.mkdir(exist_ok=True)
        environment.record(self.directory, self.command, self.state.step, self.process.world_size, self.process.device)
        self.tracker = Tracker(self.directory, self.config, self.state.step, self.run_id)
        self.run_id = self.tracker.run_id or self.run_id
        try:
            yield
        except BaseException:
            self.tracker.finish(exit_code=1)
            raise
        self.tracker.finish()

    def _metrics(self, validating: bool, seconds: float, steps: int) -> dict[str, float]:
        """Validate if it is time to, and return what the main process logs of the last steps.

        Args:
            validating: Whether to validate.
            seconds: That these steps took.
            steps: How many they were.
        """
        config, state = self.config, self.state
        metrics = self._quoted("train", state.mean_loss())
        if validating:
            metrics |= self._validate()
        if not self.process.is_main:
            return {}
        heads = [span for layer in state.spans for span in layer]
        speed = steps * config.train.batch_size * config.model.block_size / seconds
        operations = flops.forward(config.model, self.corpus.vocab_size, state.spans)
        learning = flops.training(operations, config.train.freeze == "weights")
        return metrics | {
            "span/mean": sum(heads) / len(heads),
            "span/max": max(heads),
            "flops_per_token": sum(operations.values()),
            "lr": learning_rate(state.step, config.optimizer.lr, config.train),
            "grad_norm": state.grad_norm,
            "tokens_per_second": speed,
            "ms_per_step": 1000 * seconds / steps,
            "peak_memory_mib": peak_memory(self.process) / 2**20,
            "mfu": learning * speed / self.peak,
        }

    def _quoted(self, split: str, nats_per_token: float, of: str = "") -> dict[str, float]:
        """Return a loss by the names under which it is logged, those of a split with `of` behind it."""
        quoted = scoring.quoted(nats_per_token, self.corpus, split)
        return {f"{split}{of}/{unit}": value for unit, value in quoted.items()}

    def _validate(self) -> dict[str, float]:
        """Score the weights on the validation part, and their average, and keep the best ones so far.

        Returns:
            The losses, by the names under which they are logged.
        """
        state = self.state
        nats = self._validation_loss(state.model, state.span_bounds)
        if nats < self.best:
            self.best = nats
            self._keep(state.weights(), BEST)
        losses = self._quoted("valid", nats)
        if state.average is not None:
            model = state.average.model
            nats = self._validation_loss(model, model.span_bounds())  # whose spans may be longer than the weights' own
            if nats < self.best_average:
                self.best_average = nats
                self._keep(state.averaged_weights(), BEST_AVERAGE)
            losses |= self._quoted("valid", nats, "_average")
        return losses

    def _validation_loss(self, model: Transformer, span_bounds: SpanBounds) -> float:
        """Return nats per token on the validation part."""
        config, state = self.config, self.state
        with autocast(config.hardware, self.process.device), low_precision(model, config.hardware.precision):
            score = scoring.validate(
                model, self.validation_rows, config.model.block_size, config.validation.blocks,
                config.train.batch_split, span_bounds, self.process, self.graphs,
            )  # fmt: skip
        nats = score.nats / score.tokens
        if not math.isfinite(nats):
            raise state.diverged(f"the loss on the validation part is {nats} after step {state.step}")
        return nats

    def _keep(self, weights: dict[str, Tensor], name: str) -> None:
        """Write weights that do best so far."""
        if self.process.is_main:
            files.save(self._identity() | {"step": self.state.step, "model": weights}, self.checkpoints / name)

    def _identity(self) -> files.State:
        average = {"best_average": self.best_average} if self.state.average else {}
        return average | {
            "config": self.config.as_dict(),
            "corpus": self.corpus.fingerprint,
            "vocab_size": self.corpus.vocab_size,
            "vocabulary": self.corpus.numbering.pack(),
            "best": self.best,
            "run_id": self.run_id,
        }

    def _save(self) -> None:
        state = self._identity() | self.state.state_dict()
        if self.process.is_main:
            if self.state.step == self.config.train.total_steps:
                self._forget_scores()
            files.save(state, step_path(self.checkpoints, self.state.step))
            files.prune(self.checkpoints, self.config.checkpoint.keep, self.state.step)
        self.process.barrier()

    def _forget_scores(self) -> None:
        """Remove the scores of weights that are no longer the last: a run with scores and all its steps is finished."""
        scores.forget(self.directory)

    def resume(self, state: files.State, problems: list[str]) -> None:
        """Resume from the newest training state of the directory; `problems` are those of newer ones."""
        self._refuse_changes(state)
        if self.state.average is not None:
            source = step_path(self.checkpoints, state["step"])
            average_in(state, self.state.model, source)
            self.best_average = lookup(state, "best_average", float, source)
        self.state.load_state_dict(state)
        self.best, self.run_id = state["best"], state["run_id"]
        if self.process.is_main:  # what was killed may have had no time to
            files.prune(self.checkpoints, self.config.checkpoint.keep, self.state.step)
        if self.process.is_main and self.state.step < self.config.train.total_steps:
            for problem in problems:
                print_line(f"warning: {problem}")
            print_line(f"resuming {self.directory} after step {self.state.step}")

    def _refuse_changes(self, state: files.State) -> None:
        refuse_changes(state["config"], self.config)
        if state["corpus"] != self.corpus.fingerprint:
            raise UserError(
                f"run.dir={self.directory} was begun on other data than data={self.config.data.name} is now; "
                f"bring back the data, or give another run.dir"
            )

    def score(self) -> Result | None:
        """Score the best weights on the whole of valid and test: for `evaluation.json`, the figure and the tracker.

        The best averaged weights are scored too, where there are any. Call it within `tracked`.

        Returns:
            The result in the main process, None in the others.
        """
        averaged = {scores.AVERAGE: self._score(BEST_AVERAGE)[0]} if self.state.average else {}
        result, model = self._score(BEST)
        result |= averaged
        if not self.tracker:
            return None
        figure = report.draw(result, self.directory, self.config.model)
        losses = token_losses.measure(model, self.corpus, self._scoring_block, result["step"], self.process)
        token_losses.write(losses, self.directory)
        scores.write(result, self.directory)
        self.tracker.result(result)
        return Result(self.directory, self.state.step, result, figure, self.tracker.place, self.tracker.upload)

    @property
    def _scoring_block(self) -> int:
        return max(self.config.model.block_size, SCORING_BLOCK)

    def _score(self, name: str) -> tuple[dict[str, Any], Transformer]:
        """Return the exact scores of a file of weights, and its model."""
        process, path = self.process, self.checkpoints / name
        stored = files.load(path)
        model = model_of(stored, path, process.device)
        rows = min(8, self.config.train.batch_size // process.world_size)  # more of them would warm up for longer
        result = report.score(
            model, self.corpus, "exact", rows * process.world_size, self._scoring_block, process, self.graphs
        )
        parameters = sum(p.numel() for p in model.parameters())
        return result | {"checkpoint": str(path), "step": stored["step"], "parameters": parameters}, model
