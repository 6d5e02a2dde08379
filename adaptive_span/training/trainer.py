"""The training loop: update, look at the validation text, write numbers, save; and go on from where a run stopped."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from adaptive_span.checkpoint import files, original
from adaptive_span.checkpoint.matching import corpus_for
from adaptive_span.checkpoint.paths import CHECKPOINTS, step_path
from adaptive_span.checkpoint.stored_model import model_of
from adaptive_span.config import plugins
from adaptive_span.config.overrides import pasted, setting
from adaptive_span.config.schema import Config, TrainConfig
from adaptive_span.data import stream
from adaptive_span.data.corpus import Corpus, prepare
from adaptive_span.distributed import Process, autocast, available_memory, process_group
from adaptive_span.errors import UserError, check_batch
from adaptive_span.evaluation import report, scoring
from adaptive_span.hardware import capacity, step_graph
from adaptive_span.hardware.precision import tf32
from adaptive_span.model import flops
from adaptive_span.model.low_precision import low_precision
from adaptive_span.reporting import scores
from adaptive_span.reporting.console import TrainingProgress
from adaptive_span.reporting.run_directory import (
    CONFIG,
    LOCK,
    forget_failure,
    is_finished,
    refuse_changes,
    refuse_links,
    report_finished,
    write_config,
)
from adaptive_span.reporting.tracking import METRICS, Tracker
from adaptive_span.storage.writing import discard_unfinished, explained
from adaptive_span.terminal.output import Output
from adaptive_span.terminal.printing import print_line, print_places
from adaptive_span.terminal.program import sigterm_as_exit
from adaptive_span.training import environment, out_of_memory
from adaptive_span.training.interruption import Interruption
from adaptive_span.training.schedule import learning_rate
from adaptive_span.training.settle import begun_with, settle
from adaptive_span.training.state import Training
from adaptive_span.training.watchdog import Watchdog

SCORING_BLOCK = 128  # tokens: shorter blocks would leave the processor waiting, and the exact score is the same


def train(config: Config, command: Sequence[str] = ()) -> None:
    """Train the run of `config.run.dir` from its newest checkpoint to its last step, and score it.

    Call it in every process. The words of `command` are kept in the run's record.
    """
    plugins.load(config.plugins)
    directory = Path(config.run.dir or "")
    with process_group(config.hardware) as process, sigterm_as_exit(), ExitStack() as stack:
        check_batch("train.batch_size", config.train.batch_size, process.world_size, config.train.batch_split)
        capacity.check_memory(config, 0, process.world_size, available_memory(process))
        if process.is_main:
            stack.enter_context(_claimed(directory))
            Output.notice = f"the training continues, and its numbers are in {directory / METRICS}"
        process.barrier()
        stack.enter_context(environment.deterministic(config.train.deterministic))
        _train(config, process, directory, command)


def _phases(train: TrainConfig) -> str:
    """Return how many steps the whole run has, and which."""
    told = f"training for {train.total_steps:,} steps"
    if train.finetune_steps:
        told += f": {train.steps:,} at the full rate, then {train.finetune_steps:,} at a tenth"
    return told


def _more(config: Config) -> list[str]:
    """Return the settings that train for as many steps again, and end with the same phase."""
    train, steps = config.train, [f"train.steps={config.train.total_steps + config.train.steps}"]
    steps += [f"train.finetune_steps={train.finetune_steps}"] if train.finetune_steps else []
    return [*steps, *([f"plugins=[{','.join(config.plugins)}]"] if config.plugins else [])]


def _train(config: Config, process: Process, directory: Path, command: Sequence[str]) -> None:
    saved, problems = files.newest(directory / CHECKPOINTS)
    config, lines = settle(config, process, begun_with(saved))
    run = _begun(config, process, directory, command, saved, problems)
    if run.training.step < config.train.total_steps:
        if process.is_main:
            for line in (*lines, _phases(config.train)):
                print_line(line)
        with Interruption() as interruption:
            run.go_on(interruption)
    elif is_finished(directory, run.training.step, config.train.total_steps):
        if process.is_main:
            report_finished(directory, run.training.step)
        return
    run.score()


def _begun(
    config: Config,
    process: Process,
    directory: Path,
    command: Sequence[str],
    saved: files.State | None,
    problems: list[str],
) -> "Run":
    """Return the run with its newest training state, or with the weights of another one, or with fresh ones."""
    source, by_frequency = config.train.init_from or config.train.continue_from, config.model.reads_by_frequency
    weights = original.load(Path(source)) if source and saved is None else None
    if weights is not None and source:
        corpus = corpus_for(weights, source, config.data, by_frequency, config.numbering)
    elif source and saved is not None and "vocabulary" in saved:  # that of the weights that it began with
        corpus = corpus_for(saved, str(directory), config.data, by_frequency, None)
    else:
        corpus = prepare(config.data, by_frequency)
    process.wait_for_all()
    if process.is_main:
        for warning in corpus.warnings(config.data):
            print_line(f"warning: {warning}")
    memory = available_memory(process)
    capacity.check_memory(config, corpus.vocab_size, process.world_size, memory)
    run = Run(config, corpus, process, directory, command)
    if saved is not None:
        run.resume(saved, problems)
    elif weights is not None and source:
        run.training.begin_with(weights, Path(source))
    return run


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    """The run directory, for one training at a time; gone again if nothing came of it."""
    refuse_links(directory)
    lock = FileLock(directory / LOCK)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        forget_failure(directory)
        discard_unfinished(directory)
    except Timeout:
        raise UserError(
            f"another process is training in run.dir={directory}; wait for it, or give another run.dir"
        ) from None
    except OSError as error:
        raise UserError(f"run.dir={directory} cannot be written to ({error.strerror}); give another run.dir") from None
    try:
        yield
    finally:
        lock.release()
        if directory.exists() and [path.name for path in directory.iterdir()] in ([LOCK], []):
            (directory / LOCK).unlink(missing_ok=True)
            directory.rmdir()


class Run:
    """A training and the directory that it lives in."""

    def __init__(self, config: Config, corpus: Corpus, process: Process, directory: Path, command: Sequence[str]):
        self.command = command
        self.config, self.corpus, self.process, self.directory = config, corpus, process, directory
        self.checkpoints = directory / CHECKPOINTS
        self.best = float("inf")  # nats a token on the validation part
        self.run_id: str | None = None  # the tracker's
        self.place: str | None = None
        valid = corpus.tokens("valid")
        self.validation_rows = stream.rows(valid, config.train.batch_size, config.model.block_size, "valid")
        self.training = Training(config, corpus, process)
        self.graphs, _ = step_graph.choose(config.hardware.graphs, process.device)

    def go_on(self, interruption: Interruption) -> None:
        """The loop. A signal ends it after the step at hand, with everything saved."""
        config, training, process, total = self.config, self.training, self.process, self.config.train.total_steps
        with ExitStack() as stack:
            stack.enter_context(tf32(config.hardware.precision == "tf32"))
            tracker = stack.enter_context(self._tracker()) if process.is_main else None
            if process.is_main:
                self._forget_scores()
            progress = stack.enter_context(TrainingProgress(training.step, total)) if process.is_main else None
            parameters = sum(p.numel() for p in training.model.parameters())
            stack.enter_context(out_of_memory.explained(config, process, parameters, lambda: training.limits))
            watchdog = Watchdog(process.rank, 60 * config.hardware.timeout)
            if process.world_size > 1:
                stack.enter_context(watchdog)
            clock, since = time.perf_counter(), training.step
            while training.step < total:
                watchdog.step()
                training.update()
                step, signal = training.step, interruption.agreed(process)
                validating = step % config.validation.every == 0 or step == total
                if validating or step % config.log.every == 0:
                    seconds = time.perf_counter() - clock
                    tokens = (step - since) * config.train.batch_size * config.model.block_size
                    metrics = self._metrics(validating) | {"tokens_per_second": tokens / seconds}
                    if tracker and progress:
                        tracker.log(step, metrics, training.spans)
                        progress.show(step, metrics)
                    clock, since = time.perf_counter(), step
                if progress:
                    progress.advance(step)
                if signal or step == total or step % config.checkpoint.every == 0:
                    self._save()
                if signal and step < total:
                    self._stop(signal)
        if signal := interruption.agreed(process):  # also while it was validated and saved for the last time
            self._stop(signal)

    def _stop(self, signal: int) -> NoReturn:
        if self.process.is_main:
            total = self.config.train.total_steps
            print_line(f"stopped after step {self.training.step} of {total}, and saved; the same command goes on")
        raise SystemExit(128 + signal)

    @contextmanager
    def _tracker(self) -> Iterator[Tracker]:
        write_config(self.config, self.directory)
        with explained(self.checkpoints):
            self.checkpoints.mkdir(exist_ok=True)
        environment.record(
            self.directory, self.command, self.training.step, self.process.world_size, self.process.device
        )
        tracker = Tracker(self.directory, self.config, self.training.step, self.run_id)
        self.run_id, self.place = tracker.run_id or self.run_id, tracker.place
        try:
            yield tracker
        except BaseException:
            tracker.finish(exit_code=1)
            raise
        tracker.finish()

    def _metrics(self, validating: bool) -> dict[str, float]:
        config, training = self.config, self.training
        unit, value = scoring.headline(training.read_nats(), self.corpus.level)
        metrics = {f"train/{unit}": value}
        if validating:
            metrics[f"valid/{unit}"] = scoring.headline(self._validate(), self.corpus.level)[1]
        heads = [span for layer in training.spans for span in layer]
        return metrics | {
            "span/mean": sum(heads) / len(heads),
            "span/max": max(heads),
            "flops_per_token": sum(flops.forward(config.model, self.corpus.vocab_size, training.spans).values()),
            "lr": learning_rate(training.step, config.optimizer.lr, config.train),
            "grad_norm": training.grad_norm,
        }

    def _validate(self) -> float:
        """Nats a token on the validation part; the best weights so far are kept."""
        config, training = self.config, self.training
        precision = config.hardware.precision
        with autocast(config.hardware, self.process.device), low_precision(training.model, precision):
            score = scoring.validate(
                training.model, self.validation_rows, config.model.block_size, config.validation.blocks,
                config.train.batch_split, training.limits, self.process, self.graphs,
            )  # fmt: skip
        nats = score.nats / score.tokens
        if not math.isfinite(nats):
            raise training.diverged(f"the loss on the validation part is {nats} after step {training.step}")
        if nats < self.best:
            self.best = nats
            if self.process.is_main:
                weights = {"step": training.step, "model": training.weights()}
                files.save(self._identity() | weights, self.checkpoints / "best.pt")
        return nats

    def _identity(self) -> files.State:
        return {
            "config": self.config.as_dict(),
            "corpus": self.corpus.fingerprint,
            "vocab_size": self.corpus.vocab_size,
            "vocabulary": self.corpus.numbering.pack(),
            "best": self.best,
            "run_id": self.run_id,
        }

    def _save(self) -> None:
        state = self._identity() | self.training.state_dict()
        if self.process.is_main:
            if self.training.step == self.config.train.total_steps:
                self._forget_scores()
            files.save(state, step_path(self.checkpoints, self.training.step))
            files.prune(self.checkpoints, self.config.checkpoint.keep, self.training.step)
        self.process.barrier()

    def _forget_scores(self) -> None:
        """Of weights that are not the last any more: what has scores and all its steps is finished."""
        scores.forget(self.directory)

    def resume(self, state: files.State, problems: list[str]) -> None:
        """Take up the newest training state of the directory; `problems` are those of newer ones."""
        self._refuse_changes(state)
        self.training.load_state_dict(state)
        self.best, self.run_id = state["best"], state["run_id"]
        if self.process.is_main:  # what was killed may have had no time to
            files.prune(self.checkpoints, self.config.checkpoint.keep, self.training.step)
        if self.process.is_main and self.training.step < self.config.train.total_steps:
            for problem in problems:
                print_line(f"warning: {problem}")
            print_line(f"going on with {self.directory} after step {self.training.step}")

    def _refuse_changes(self, state: files.State) -> None:
        refuse_changes(state["config"], self.config)
        if state["corpus"] != self.corpus.fingerprint:
            raise UserError(
                f"run.dir={self.directory} was begun on other data than data={self.config.data.name} is now; "
                f"bring back the data, or give another run.dir"
            )

    def score(self) -> None:
        """Score the best weights on the whole of valid and test, and say where everything is."""
        config, process, best = self.config, self.process, self.checkpoints / "best.pt"
        state = files.load(best)
        model = model_of(state, best, process.device)
        rows = min(8, config.train.batch_size // process.world_size)  # more of them would warm up for longer
        block_size = max(config.model.block_size, SCORING_BLOCK)
        result = report.score(model, self.corpus, "exact", rows * process.world_size, block_size, process, self.graphs)
        result |= {"checkpoint": str(best), "step": state["step"]}
        if not process.is_main:
            return
        figure = report.draw(result, self.directory, config.model)
        scores.write(result, self.directory)
        report.print_tables(result, config, self.corpus.level)
        print_places(
            {
                "run": self.directory,
                "weights": f"{best} (step {state['step']})",
                "metrics": self.directory / METRICS,
                "figure": figure,
                "wandb": self.place,
                "train on": pasted("train", "--config", str(self.directory / CONFIG), *_more(config)),
                "evaluate": pasted("evaluate", setting("run", str(self.directory))),
            }
        )
