"""A scored model, for people (tables, a figure) and for programs (`evaluation.json`)."""

import math
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from adaptive_span import capacity, evaluation, figures, flops, out_of_memory, published, scores, step_graph
from adaptive_span.config import MISSING, Config, DataConfig, EvaluateConfig, ModelConfig
from adaptive_span.console import flops_table, list_places, say, score_table, show, span_table
from adaptive_span.corpus import Corpus
from adaptive_span.distributed import Process, autocast, process_group
from adaptive_span.errors import UserError, check_batch
from adaptive_span.interruption import tidy_end
from adaptive_span.low_precision import low_precision
from adaptive_span.matching import corpus_for
from adaptive_span.model import Transformer
from adaptive_span.precision import EMULATED, choose, is_emulated, tf32
from adaptive_span.run_directory import refuse_links
from adaptive_span.source import described
from adaptive_span.stored import from_dict
from adaptive_span.stored_model import model_of
from adaptive_span.tracking import SCORES

SPLITS = ("valid", "test")


def score(
    model: Transformer,
    corpus: Corpus,
    protocol: str,
    batch_size: int,
    block_size: int,
    process: Process,
    graphs: bool = False,
) -> dict[str, Any]:
    """Both splits by one protocol, as `evaluation.json` holds it. Called in every process."""
    measure = {"exact": evaluation.exact, "published": evaluation.published}[protocol]
    splits, started = {}, time.perf_counter()
    if process.is_main:
        say(f"scoring {' and '.join(f'{split} ({len(corpus.tokens(split)):,} tokens)' for split in SPLITS)}")
    for split in SPLITS:
        result = measure(model, corpus.tokens(split), batch_size, block_size, process, split, graphs)
        if not math.isfinite(result.nats):
            raise UserError(
                f"the score of {split} is {result.nats}: the weights are finite, but what they compute is not"
            )
        splits[split] = {"bpc": result.bpc, "nats": result.nats, "tokens": result.tokens}
        if corpus.level == "word":
            splits[split]["ppl"] = result.perplexity
    tokens = sum(int(s["tokens"]) for s in splits.values())
    spans = model.spans().tolist()
    return {
        "protocol": protocol,
        "splits": splits,
        "spans": spans,
        "flops_per_token": flops.comparison(model.config, model.vocab_size, spans),
        "tokens_per_second": tokens / (time.perf_counter() - started),
    }


def draw(result: dict[str, Any], directory: Path, config: ModelConfig) -> Path:
    """Draw the spans, and return the file."""
    path = directory / "figures" / "spans.png"
    figures.draw_spans(result["spans"], config.max_span, path)
    return path


def print_tables(result: dict[str, Any], config: Config, level: str, text: str | None = None) -> None:
    """Print scores, of another text under its name, else with the published ones beside them where the recipe has
    some; spans; and what they cost."""
    unit = "bpc" if level == "byte" else "ppl"
    found = {split: values[unit] for split, values in result["splits"].items()}
    title = f"{result['protocol']} evaluation" + (f" of {text}" if text else "")
    show(score_table(title, unit, found, {} if text else config.published))
    show(span_table(result["spans"], config.model.max_span))
    show(flops_table(result["flops_per_token"]))


def evaluate(asked: EvaluateConfig) -> None:
    """What `evaluate.py` does. Called in every process."""
    file = Path(asked.checkpoint or Path(asked.run or "") / "checkpoints" / "best.pt")
    directory = Path(asked.output or asked.run or ".")
    if asked.run:
        refuse_links(Path(asked.run))
    with process_group(asked.hardware) as process, tidy_end():
        check_batch("batch_size", asked.batch_size, process.world_size)
        hardware = replace(asked.hardware, precision=_precision(asked.hardware.precision, process))
        state = published.load(file)
        config = from_dict(state["config"], Config, file)
        config.data = _data(asked.data, config.data, file)
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
                say(f"warning: {warning}")
        block_size = asked.block_size or config.model.block_size
        rows, memory = asked.batch_size // process.world_size, out_of_memory.available_memory(process)
        capacity.check_scoring(config.model, model.vocab_size, rows, block_size, memory)
        name, (graphs, _) = hardware.precision, step_graph.choose(hardware.graphs, process.device)
        with autocast(hardware, process.device), low_precision(model, name), tf32(name == "tf32"):
            result = score(model, corpus, asked.protocol, asked.batch_size, block_size, process, graphs)
        if process.is_main:
            result |= {"checkpoint": str(file), "step": state["step"]}
            figure, place = draw(result, directory, config.model), str(directory / SCORES)
            if is_own and asked.protocol == "exact":
                scores.write(result, directory)
            else:
                name = scores.write_other(result | _text(config.data, corpus), _name(config.data, asked), directory)
                place += f" (others: {name})"
            print_tables(result, config, corpus.level, None if is_own else described(config.data))
            list_places({"checkpoint": f"{file} (step {state['step']})", "scores": place, "figure": figure})


def _precision(asked: str, process: Process) -> str:
    """Return that of the scoring: fp32 unless another one is asked for."""
    name, _ = choose("fp32" if asked == "auto" else asked, None, process.device)
    if process.is_main and is_emulated(name, process.device):
        say(EMULATED)
    return name


def _text(data: DataConfig, corpus: Corpus) -> dict[str, Any]:
    """Return what tells the text of a score from others."""
    return {"data": described(data), "split": data.split, "level": data.level, "corpus": corpus.fingerprint}


def _name(data: DataConfig, asked: EvaluateConfig) -> str:
    """Return the name of a text, and of the protocol where it is not the exact one."""
    return (data.path or data.file or data.name) + ("" if asked.protocol == "exact" else f", {asked.protocol}")


def _data(asked: DataConfig, trained: DataConfig, file: Path) -> DataConfig:
    """The data named on the command line; or that of the training, but for what was set there."""
    if asked.name:
        return asked
    if trained.name == MISSING:
        raise UserError(
            f"{file} does not say what it was trained on; give data=NAME, and data.file=PATH if you have it"
        )
    default = DataConfig()
    moved = {key: value for key, value in vars(asked).items() if key != "name" and value != getattr(default, key)}
    return replace(trained, **moved)


def _check_writable(directory: Path) -> None:
    """Before any work is done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(f"{SCORES} can't be written to {directory} ({error.strerror}); give output=DIR") from None
