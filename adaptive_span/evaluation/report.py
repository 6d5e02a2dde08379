"""Score both splits, print tables and draw a figure."""

import math
import time
from pathlib import Path
from typing import Any

from adaptive_span.checkpoint.paths import CHECKPOINTS
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.schema import Config
from adaptive_span.data.corpus import Corpus
from adaptive_span.distributed import Process
from adaptive_span.errors import UserError
from adaptive_span.evaluation import scoring
from adaptive_span.model import flops
from adaptive_span.model.transformer import Transformer
from adaptive_span.reporting import figure_files, figures, scores, units
from adaptive_span.reporting.console import flops_table, readable, score_table, span_table
from adaptive_span.reporting.figure_style import save_figure
from adaptive_span.terminal.printing import print_line, print_table

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
    """Score both splits by one protocol. Call it in every process.

    Args:
        model: What to score.
        corpus: The text.
        protocol: exact or published.
        batch_size: Rows over all processes.
        block_size: Tokens of each row per step.
        process: The place of this process among all.
        graphs: Whether steps are recorded as CUDA graphs.

    Returns:
        What `evaluation.json` holds: protocol, splits (bpc, nats, tokens, ppl of words; of subwords bits_per_byte,
        nats_per_token and bytes_per_token in place of bpc), spans in tokens, floating-point operations per token,
        tokens per second.

    Raises:
        UserError: A score is not finite, or a split is too short.
    """
    measure = {"exact": scoring.score_exactly, "published": scoring.score_as_published}[protocol]
    splits, started = {}, time.perf_counter()
    if process.is_main:
        print_line(f"scoring {' and '.join(f'{split} ({len(corpus.tokens(split)):,} tokens)' for split in SPLITS)}")
    for split in SPLITS:
        result = measure(model, corpus.tokens(split), batch_size, block_size, process, split, graphs)
        if not math.isfinite(result.nats):
            raise UserError(
                f"the score of {split} is {result.nats}: the weights are finite, but what they compute is not"
            )
        splits[split] = {} if corpus.level == "subword" else {"bpc": result.bpc}
        splits[split] |= {"nats": result.nats, "tokens": result.tokens}
        splits[split] |= scoring.quoted(result.nats / result.tokens, corpus, split)
        if corpus.level == "subword":
            splits[split]["bytes_per_token"] = corpus.bytes_per_token(split)
    tokens = sum(int(s["tokens"]) for s in splits.values())
    spans = model.spans().tolist()
    return {
        "protocol": protocol,
        "splits": splits,
        "spans": spans,
        "flops_per_token": flops.comparison(model.config, model.vocab_size, spans),
        "tokens_per_second": tokens / (time.perf_counter() - started),
    }


def draw(result: dict[str, Any], directory: Path, config: ModelConfig, name: str | None = None) -> Path:
    """Draw the spans, and return the file.

    Args:
        result: As `score` returns it, with checkpoint and step.
        directory: Of the run; the figure lies in `figures` there.
        config: Of the model.
        name: That of the score among `others`; None for the exact score on the run's own data.
    """
    path = directory / "figures" / (f"spans-{scores.file_name(name)}.png" if name else "spans.png")
    checkpoint = Path(result["checkpoint"]).absolute()
    model = checkpoint.parent.parent.name if checkpoint.parent.name == CHECKPOINTS else checkpoint.name
    valid = result["splits"]["valid"]
    unit = units.of_scores(valid)
    score = f"{readable(valid[unit], 1 if unit == 'ppl' else 3)} {units.label(unit)} on valid"
    title = figure_files.heading(model, result["spans"], config.max_span, result["step"], score)
    title += f"\n{name if len(name) < 60 else f'…{name[-60:]}'}" if name else ""
    save_figure(figures.heat_map(result["spans"], config.max_span, config.ramp, title), path)
    return path


def print_tables(result: dict[str, Any], config: Config, level: str, text: str | None = None) -> None:
    """Print scores, spans and what they cost.

    Args:
        result: As `score` returns it, with the `average` of the weights where there is one.
        config: Of the training. Its published scores stand beside those of its own text.
        level: What a token is: byte, word or subword.
        text: Name of the text where it is not the training's.
    """
    shown = [units.of_level(level), *(["nats_per_token"] if level == "subword" else [])]
    parts = {"": result} | ({", averaged weights": result[scores.AVERAGE]} if scores.AVERAGE in result else {})
    by_split = {
        f"{split}{of}": {unit: values[unit] for unit in shown}
        for of, part in parts.items()
        for split, values in part["splits"].items()
    }
    title = f"{result['protocol']} evaluation" + (f" of {text}" if text else "")
    published = {} if text or level == "subword" else config.published  # which are of bytes, or of words
    print_table(score_table(title, by_split, published))
    print_table(span_table(result["spans"], config.model.max_span))
    print_table(flops_table(result["flops_per_token"]))


def in_a_line(result: dict[str, Any]) -> str:
    """Return the scores, the spans and what a token costs in one line.

    Args:
        result: As `score` returns it, with the step of the weights, and their `average` where there is one.
    """
    unit = units.of_scores({name for values in result["splits"].values() for name in values})
    by_split = [f"{split} {readable(values[unit], 4)}" for split, values in result["splits"].items()]
    if scores.AVERAGE in result:
        averaged = [f"{split} {readable(v[unit], 4)}" for split, v in result[scores.AVERAGE]["splits"].items()]
        by_split.append(f"(averaged weights {' '.join(averaged)})")
    heads = [span for layer in result["spans"] for span in layer]
    spans = f"span mean {sum(heads) / len(heads):.1f} max {max(heads):.1f}"
    cost = f"{result['flops_per_token']['learned_spans'] / 1e6:,.1f}M operations per token"
    return f"{units.label(unit)} {' '.join(by_split)} · {spans} · {cost} · best at step {result['step']:,}"
