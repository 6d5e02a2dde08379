"""A scored model, for people (tables, a figure) and for programs (`evaluation.json`)."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from adaptive_span import checkpoint, evaluation, figures
from adaptive_span.config import Config, EvaluateConfig, ModelConfig, check_batch, from_dict
from adaptive_span.console import list_places, score_table, show, span_table
from adaptive_span.corpus import Corpus, prepare
from adaptive_span.distributed import Process, autocast, process_group
from adaptive_span.errors import UserError
from adaptive_span.model import Transformer

SPLITS = ("valid", "test")


def score(
    model: Transformer, corpus: Corpus, protocol: str, batch_size: int, block_size: int, process: Process
) -> dict[str, Any]:
    """Both splits by one protocol, as `evaluation.json` holds it. Called in every process."""
    measure = {"exact": evaluation.exact, "published": evaluation.published}[protocol]
    splits, started = {}, time.perf_counter()
    for split in SPLITS:
        result = measure(model, corpus.tokens(split), batch_size, block_size, process, split)
        splits[split] = {"bpc": result.bpc, "nats": result.nats, "tokens": result.tokens}
        if corpus.level == "word":
            splits[split]["ppl"] = result.perplexity
    tokens = sum(int(s["tokens"]) for s in splits.values())
    return {
        "protocol": protocol,
        "splits": splits,
        "spans": model.spans().tolist(),
        "tokens_per_second": tokens / (time.perf_counter() - started),
    }


def write(result: dict[str, Any], directory: Path, config: ModelConfig) -> None:
    """`evaluation.json` and `figures/spans.png`."""
    (directory / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    figures.draw_spans(result["spans"], config.max_span, directory / "figures" / "spans.png")


def print_tables(result: dict[str, Any], config: Config) -> None:
    """Scores, with the published ones beside them where the recipe has some, and spans."""
    unit = "bpc" if config.data.level == "byte" else "ppl"
    scores = {split: values[unit] for split, values in result["splits"].items()}
    show(score_table(f"{result['protocol']} evaluation", unit, scores, config.published))
    show(span_table(result["spans"], config.model.max_span))


def model_of(state: checkpoint.State, device: torch.device) -> Transformer:
    """The model that a checkpoint describes, with its weights."""
    model = Transformer(from_dict(state["config"]["model"], ModelConfig), state["vocab_size"])
    model.load_state_dict(state["model"])
    return model.to(device)


def evaluate(evaluate_config: EvaluateConfig) -> None:
    """What `evaluate.py` does. Called in every process."""
    directory = Path(evaluate_config.run or Path(evaluate_config.checkpoint or "").parent)
    file = Path(evaluate_config.checkpoint or directory / "checkpoints" / "best.pt")
    with process_group(evaluate_config.hardware) as process:
        check_batch("batch_size", evaluate_config.batch_size, process.world_size)
        state = checkpoint.load(file)
        config = from_dict(state["config"], Config)
        corpus = prepare(config.data)
        if corpus.fingerprint != state["corpus"]:
            raise UserError(
                f"{file} was trained on other data than data={config.data.name} is on this machine: its scores would "
                f"not be comparable; bring the data that it was trained on"
            )
        model = model_of(state, process.device)
        block_size = evaluate_config.block_size or config.model.block_size
        with autocast(evaluate_config.hardware, process.device):
            result = score(model, corpus, evaluate_config.protocol, evaluate_config.batch_size, block_size, process)
        if process.is_main:
            write(result | {"checkpoint": str(file), "step": state["step"]}, directory, config.model)
            print_tables(result, config)
            list_places(
                {
                    "checkpoint": f"{file} (step {state['step']})",
                    "scores": directory / "evaluation.json",
                    "figure": directory / "figures" / "spans.png",
                }
            )
