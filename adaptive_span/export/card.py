"""Write the model card: README.md, the figure of the spans that it shows, and the scores that it names."""

from pathlib import Path
from typing import Any

import yaml

from adaptive_span.checkpoint.files import State
from adaptive_span.checkpoint.paths import BEST_AVERAGE, CHECKPOINTS, WEIGHTS
from adaptive_span.config.checks import MISSING
from adaptive_span.model import flops
from adaptive_span.model.transformer import Transformer
from adaptive_span.reporting import figures, scores, units
from adaptive_span.reporting.console import readable
from adaptive_span.reporting.figure_files import heading
from adaptive_span.reporting.figure_style import save_figure
from adaptive_span.reporting.tracking import SCORES
from adaptive_span.storage import strict_json
from adaptive_span.storage.writing import atomic_write

CARD, FIGURE = "README.md", "spans.png"
PROTOCOLS = {
    "exact": "every token but the first, each from all that stands before it",
    "published": "as the papers' numbers were made: 8 rows, whole blocks alone",
}
METRICS = {"bpc": "bits_per_byte", "ppl": "perplexity", "bits_per_byte": "bits_per_byte"}  # as the Hub calls them
TEXT = """\
# {name}

A language model whose {heads:,} attention heads have each learned how far to look
([Adaptive Attention Span in Transformers](https://arxiv.org/abs/1905.07799)). It reads {level}s, of which it knows
{symbols:,}, and predicts the next one. It was trained {trained}.

![How far each head looks: a row per layer, a column per head]({figure})

| | |
|---|---|
{sizes}

## Scores

{scores}

## Use it

`pip install transformers torch`. The model's code comes with it, in `modeling_adaptive_span.py`; read it before you
allow it to run:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
write = pipeline("text-generation", model=model, tokenizer=tokenizer)
print(write("The ", max_new_tokens=200)[0]["generated_text"])
```

`"{name}"` stands for the place of this folder or repository. A token costs what the heads look back at: of each group
of heads, keys and values are kept as far as it sees. So a text may be of any length. Texts of a batch are padded on the
left, which changes no number.

Its numbers are in `model.safetensors`. With the program adaptive-span, which wrote this folder, it goes wherever a
checkpoint does: `adaptive-span evaluate checkpoint=DIR`, `adaptive-span generate checkpoint=DIR`, and in Python
`adaptive_span.load_model("DIR")`.

## Limits

The model continues text as it stood in its training data, with what is wrong or harmful in it. It follows no
instructions.

## Licence

Left to whoever publishes the model: put `license:` into the first lines of this file.
"""


def scores_beside(file: Path, step: int) -> scores.Scores:
    """Return what the model has scored, if that is kept with it, and nothing that names places on this machine.

    Args:
        file: A checkpoint in the directory of a run, or an exported folder; another file has no scores.
        step: Updates that the model has seen: scores of other steps do not count.

    Raises:
        UserError: The scores are damaged.
    """
    if not file.is_dir() and file.parent.name != CHECKPOINTS:
        return {}
    found = scores.read(file if file.is_dir() else file.parent.parent)
    own = {key: value for key, value in found.items() if key not in (scores.AVERAGE, scores.OTHERS)}
    kept = next((each for each in (own, found.get(scores.AVERAGE, {})) if _is_of(each, file, step)), {})
    kept = kept | {"checkpoint": WEIGHTS} if kept else {}
    others = {}
    for other in found.get(scores.OTHERS, {}).values():
        if _is_of(other, file, step):
            text = str(other.get("data", "")).removeprefix("data=").split(" ")[0]
            cut = f", max_span {other['max_span']}" if "max_span" in other else ""
            name = f"{text}, {other.get('protocol')}{cut}"
            others[name] = other | {"checkpoint": WEIGHTS, "data": f"data={text}"}
    return kept | ({scores.OTHERS: others} if others else {})


def _is_of(score: scores.Scores, file: Path, step: int) -> bool:
    """Return whether a score is of these weights: of the step, and averaged ones if they are."""
    averaged = Path(str(score.get("checkpoint"))).name == BEST_AVERAGE
    return score.get("step") == step and averaged == (file.name == BEST_AVERAGE)


def write(state: State, model: Transformer, level: str, scored: scores.Scores, folder: Path, name: str) -> None:
    """Write README.md, the figure and the scores.

    Args:
        state: The checkpoint that the model is of.
        model: The model.
        level: What a token is.
        scored: As `scores_beside` returns it.
        folder: Where to write.
        name: Of the model.
    """
    config, spans = model.config, model.spans().tolist()
    figure = figures.heat_map(spans, config.max_span, config.ramp, heading(name, spans, config.max_span, state["step"]))
    save_figure(figure, folder / FIGURE)
    if scored:
        strict_json.write(scored, folder / SCORES)
    text = state["config"].get("data", {}).get("name", MISSING)
    rows = _rows(scored, level, "?" if text == MISSING else text)
    filled = TEXT.format(
        name=name,
        heads=config.num_layers * config.num_heads,
        level=level,
        symbols=model.vocab_size,
        trained=f"for {state['step']:,} steps" + ("" if text == MISSING else f" on {text}"),
        figure=FIGURE,
        sizes="\n".join(f"| {what} | {value} |" for what, value in _facts(model).items()),
        scores=_table(rows, level),
    )
    with atomic_write(folder / CARD) as temporary:
        temporary.write_text(f"---\n{_metadata(name, rows, level)}---\n\n{filled}", encoding="utf-8")


def _facts(model: Transformer) -> dict[str, str]:
    """Return what the model is and costs."""
    config, spans = model.config, model.spans()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cost = flops.comparison(config, model.vocab_size, spans.tolist())
    learned, most = (f"{cost[key] / 1e6:,.1f} million" for key in ("learned_spans", "maximum_span"))
    inside = f"{config.memory_size:,} persistent vectors per head"
    inside = inside if config.memory_size else f"feed-forward of {config.ffn_size:,}"
    return {
        "parameters": f"{parameters:,}",
        "layers × heads": f"{config.num_layers} × {config.num_heads}",
        "sizes": f"hidden states of {config.hidden_size:,}, {inside}",
        "span of a head": f"{spans.mean():,.0f} tokens by the mean, {spans.max():,.0f} at most, of {config.max_span:,}",
        "floating-point operations per token": f"{learned}; with every head at {config.max_span:,} tokens, {most}",
    }


def _rows(scored: scores.Scores, level: str, text: str) -> list[dict[str, Any]]:
    """Return each score: text, protocol, cut, and a number per split."""
    unit = units.of_level(level)
    own = [(text, scored)] if "splits" in scored else []
    others = [(str(each["data"]).removeprefix("data="), each) for each in scored.get(scores.OTHERS, {}).values()]
    return [
        {"text": name, "protocol": each["protocol"], "cut": each.get("max_span")}
        | {split: values[unit] for split, values in each["splits"].items()}
        for name, each in own + others
    ]


def _table(rows: list[dict[str, Any]], level: str) -> str:
    if not rows:
        return "None are known. `adaptive-span evaluate checkpoint=DIR data=NAME` scores the model."
    unit = units.NAMES[units.of_level(level)]
    lines = [f"In {unit}; lower is better.", "", "| text | protocol | valid | test |", "|---|---|---|---|"]
    for row in rows:
        cut = f"; spans cut to {row['cut']:,} tokens" if row["cut"] else ""
        protocol = f"{row['protocol']}: {PROTOCOLS[row['protocol']]}{cut}"
        valid, test = readable(row["valid"], 3), readable(row["test"], 3)
        lines.append(f"| {row['text']} | {protocol} | {valid} | {test} |")
    return "\n".join(lines)


def _metadata(name: str, rows: list[dict[str, Any]], level: str) -> str:
    """Return the YAML that the Hub reads. It leaves the licence to the user."""
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["adaptive-span", "adaptive-attention-span", f"{level}-level"],
    }
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": row["text"], "type": row["text"], "split": split},
            "metrics": [{"type": METRICS[units.of_level(level)], "value": round(row[split], 4)}],
        }
        for row in rows
        if row["protocol"] == "exact" and not row["cut"]
        for split in ("valid", "test")
    ]
    if results:
        values["model-index"] = [{"name": name, "results": results}]
    return "# license: …\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
