"""A scored model, for people (tables, a figure) and for programs (`evaluation.json`)."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from adaptive_span import checkpoint, evaluation, figures, flops, published
from adaptive_span.config import MISSING, Config, DataConfig, EvaluateConfig, ModelConfig
from adaptive_span.console import flops_table, list_places, say, score_table, show, span_table
from adaptive_span.corpus import Corpus, prepare
from adaptive_span.distributed import Process, autocast, process_group
from adaptive_span.errors import UserError, check_batch
from adaptive_span.model import Transformer
from adaptive_span.stored import from_dict
from adaptive_span.stored_model import model_of
from adaptive_span.tracking import SCORES

SPLITS = ("valid", "test")


def score(
    model: Transformer, corpus: Corpus, protocol: str, batch_size: int, block_size: int, process: Process
) -> dict[str, Any]:
    """Both splits by one protocol, as `evaluation.json` holds it. Called in every process."""
    measure = {"exact": evaluation.exact, "published": evaluation.published}[protocol]
    splits, started = {}, time.perf_counter()
    if process.is_main:
        say(f"scoring {' and '.join(f'{split} ({len(corpus.tokens(split)):,} tokens)' for split in SPLITS)}")
    for split in SPLITS:
        result = measure(model, corpus.tokens(split), batch_size, block_size, process, split)
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


def write(result: dict[str, Any], directory: Path, config: ModelConfig) -> None:
    """`figures/spans.png`, and at last `evaluation.json`, which says that a run has been scored."""
    figures.draw_spans(result["spans"], config.max_span, directory / "figures" / "spans.png")
    temporary = directory / f"{SCORES}.writing"
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, directory / SCORES)


def print_tables(result: dict[str, Any], config: Config, level: str) -> None:
    """Scores, with the published ones beside them where the recipe has some; spans; and what they cost."""
    unit = "bpc" if level == "byte" else "ppl"
    scores = {split: values[unit] for split, values in result["splits"].items()}
    show(score_table(f"{result['protocol']} evaluation", unit, scores, config.published))
    show(span_table(result["spans"], config.model.max_span))
    show(flops_table(result["flops_per_token"]))


def evaluate(asked: EvaluateConfig) -> None:
    """What `evaluate.py` does. Called in every process."""
    file = Path(asked.checkpoint or Path(asked.run or "") / "checkpoints" / "best.pt")
    directory = Path(asked.output or asked.run or ".")
    with process_group(asked.hardware) as process:
        check_batch("batch_size", asked.batch_size, process.world_size)
        state = published.load(file)
        config = from_dict(state["config"], Config, file)
        config.data = _data(asked.data, config.data, file)
        if process.is_main:
            _check_writable(directory)
        corpus = prepare(config.data, config.model.reads_by_frequency)
        _check_corpus(corpus, state, config.data, file)
        model = model_of(state, file, process.device)
        block_size = asked.block_size or config.model.block_size
        with autocast(asked.hardware, process.device):
            result = score(model, corpus, asked.protocol, asked.batch_size, block_size, process)
        if process.is_main:
            write(result | {"checkpoint": str(file), "step": state["step"]}, directory, config.model)
            print_tables(result, config, corpus.level)
            list_places(
                {
                    "checkpoint": f"{file} (step {state['step']})",
                    "scores": directory / SCORES,
                    "figure": directory / "figures" / "spans.png",
                }
            )


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


def _check_corpus(corpus: Corpus, state: checkpoint.State, data: DataConfig, file: Path) -> None:
    if corpus.vocab_size != state["vocab_size"]:
        raise UserError(
            f"{file} has a vocabulary of {state['vocab_size']:,} tokens, but data={data.name} with "
            f"data.split={data.split} numbers {corpus.vocab_size:,}; give the data that it was trained on"
        )
    if state["corpus"] is not None and corpus.fingerprint != state["corpus"]:
        raise UserError(
            f"{file} was trained on other data than data={data.name} is on this machine: its scores would not be "
            f"comparable; bring the data that it was trained on"
        )


def _check_writable(directory: Path) -> None:
    """Before any work is done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(f"{SCORES} can't be written to {directory} ({error.strerror}); give output=DIR") from None
