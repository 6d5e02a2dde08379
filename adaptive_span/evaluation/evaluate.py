"""Score a checkpoint on a text, as a configuration of `evaluate.py` asks."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from adaptive_span.checkpoint import loading
from adaptive_span.checkpoint.matching import corpus_for
from adaptive_span.checkpoint.paths import best_path
from adaptive_span.checkpoint.stored_model import model_of
from adaptive_span.config import plugins
from adaptive_span.config.checks import MISSING
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.data_sets import completed
from adaptive_span.config.evaluate_schema import EvaluateConfig
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.schema import Config
from adaptive_span.data.corpus import Corpus
from adaptive_span.data.source import described
from adaptive_span.distributed import Process, autocast, available_memory, process_group
from adaptive_span.errors import UserError, check_batch
from adaptive_span.evaluation import report, token_losses
from adaptive_span.hardware import capacity, step_graph
from adaptive_span.hardware.precision import EMULATED, choose, is_emulated, tf32
from adaptive_span.model.cut_spans import with_spans_cut
from adaptive_span.model.low_precision import low_precision
from adaptive_span.reporting import scores
from adaptive_span.reporting.console import all_scores_table
from adaptive_span.reporting.run_directory import refuse_links
from adaptive_span.reporting.tracking import SCORES
from adaptive_span.storage.stored import from_dict
from adaptive_span.terminal.printing import print_line, print_places, print_table
from adaptive_span.terminal.program import sigterm_as_exit


def evaluate(asked: EvaluateConfig) -> None:
    """Score a checkpoint; print and write the result. Call it in every process.

    Args:
        asked: A checked configuration.

    Raises:
        UserError: The checkpoint, the text or the folder cannot be used.
    """
    plugins.load(asked.plugins)
    file = Path(asked.checkpoint or best_path(Path(asked.run or "")))
    directory = Path(asked.output or asked.run or ".")
    if asked.run:
        refuse_links(Path(asked.run))
    with process_group(asked.hardware) as process, sigterm_as_exit():
        check_batch("batch_size", asked.batch_size, process.world_size)
        hardware = replace(asked.hardware, precision=_precision(asked.hardware.precision, process))
        state = loading.load(file)
        config = from_dict(completed(state["config"]), Config, file)
        config.data = _data(asked.data, config.data, file)
        _check_cuts(asked.max_span, config.model, file)
        if process.is_main:
            _check_writable(directory)
        model = model_of(state, file, process.device)
        corpus = corpus_for(state, str(file), config.data, config.model.reads_by_frequency, asked.numbering)
        process.wait_for_all()
        is_own = corpus.fingerprint == state.get("corpus")
        if not is_own and not asked.data.name:
            raise UserError(
                f"{file} was trained on other data than data={config.data.name} is on this machine; bring back the "
                f"data that it was trained on, or name the text to score with data=NAME"
            )
        if process.is_main:
            for warning in corpus.warnings(config.data):
                print_line(f"warning: {warning}")
        block_size = asked.block_size or config.model.block_size
        rows, memory = asked.batch_size // process.world_size, available_memory(process)
        capacity.check_scoring(config.model, model.vocab_size, rows, block_size, memory)
        precision, (graphs, _) = hardware.precision, step_graph.choose(hardware.graphs, process.device)
        cuts: list[int | None] = [*dict.fromkeys(asked.max_span)]
        kept: list[tuple[str, Path]] = []  # where each score is, and its figure
        for most in cuts or [None]:
            cut = model if most is None else with_spans_cut(model, most)
            if process.is_main and most is not None:
                print_line(f"with spans cut to {most:,} tokens:")
            with autocast(hardware, process.device), low_precision(cut, precision), tf32(precision == "tf32"):
                result = report.score(cut, corpus, asked.protocol, asked.batch_size, block_size, process, graphs)
                if process.is_main and is_own and asked.protocol == "exact" and most is None:
                    losses = token_losses.measure(model, corpus, block_size, state["step"], process)
                    token_losses.write(losses, directory)
            if process.is_main:
                result |= {"checkpoint": str(file), "step": state["step"]} | ({"max_span": most} if most else {})
                kept.append(_keep(result, config, corpus, is_own, directory))
        if process.is_main:
            _print_kept(kept, directory, f"{file} (step {state['step']})")


def _keep(result: dict[str, Any], config: Config, corpus: Corpus, is_own: bool, directory: Path) -> tuple[str, Path]:
    """Write one score and its figure, each under a name of its own, and return the places."""
    place, name = str(directory / SCORES), None
    if is_own and result["protocol"] == "exact" and "max_span" not in result:
        scores.write(result, directory)
    else:
        name = scores.write_other(result | _text(config.data, corpus), _name(config.data, result), directory)
        place += f" (others: {name})"
    if "max_span" not in result:
        report.print_tables(result, config, corpus.level, None if is_own else described(config.data))
    return place, report.draw(result, directory, config.model, name)


def _print_kept(kept: list[tuple[str, Path]], directory: Path, checkpoint: str) -> None:
    """Print all scores of the folder together, where there are several, and the places of the new ones."""
    if len(summaries := scores.summaries(directory)) > 1:
        print_table(all_scores_table(summaries, directory / SCORES))
    if len(kept) > 1:
        figures = ", ".join(path.name for _, path in kept)
        print_places(
            {"checkpoint": checkpoint, "scores": directory / SCORES, "figures": f"{kept[0][1].parent}: {figures}"}
        )
    else:
        [(place, figure)] = kept
        print_places({"checkpoint": checkpoint, "scores": place, "figure": figure})


def _precision(asked: str, process: Process) -> str:
    """Return the precision to score in: fp32 unless another one is asked for."""
    name, _ = choose("fp32" if asked == "auto" else asked, None, process.device)
    if process.is_main and is_emulated(name, process.device):
        print_line(EMULATED)
    return name


def _text(data: DataConfig, corpus: Corpus) -> dict[str, Any]:
    """Return what distinguishes the text of a score from others."""
    return {"data": described(data), "split": data.split, "level": data.level, "corpus": corpus.fingerprint}


def _name(data: DataConfig, result: dict[str, Any]) -> str:
    """Return the name of a score: its text, its protocol unless that is the exact one, and where spans were cut."""
    protocol = "" if result["protocol"] == "exact" else f", {result['protocol']}"
    cut = f", max_span {result['max_span']}" if "max_span" in result else ""
    return (data.path or data.file or data.name) + protocol + cut


def _check_cuts(cuts: list[int], config: ModelConfig, file: Path) -> None:
    """Refuse to cut where no head looks."""
    if cuts and max(cuts) > config.max_span:
        raise UserError(
            f"max_span={max(cuts)} is beyond the {config.max_span} tokens that a head of {file} may look at; take at "
            f"most {config.max_span}"
        )


def _data(asked: DataConfig, trained: DataConfig, file: Path) -> DataConfig:
    """Return the data named on the command line, or that of the training with the keys that are set there."""
    if asked.name:
        return asked
    if trained.name == MISSING:
        raise UserError(
            f"{file} does not say what it was trained on; give data=NAME, and data.file=PATH if you have it"
        )
    default = DataConfig()
    moved = {key: value for key, value in vars(asked).items() if key != "name" and value != getattr(default, key)}
    # A checkpoint holds its tokenizer: where its file was does not matter.
    data = replace(trained, **({"tokenizer": None} | moved))
    data.validate()  # an exported folder names no place of its text
    return data


def _check_writable(directory: Path) -> None:
    """Refuse a folder that cannot be written to, before any work is done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(f"{SCORES} can't be written to {directory} ({error.strerror}); give output=DIR") from None
