"""Time a step of fitting spans against the model's own forward and backward pass, through its activations."""

from collections.abc import Sequence

import torch

from adaptive_span.benchmark.timing import Workload, peak_memory, time_interleaved
from adaptive_span.benchmark.transformers_cache import smollm2
from adaptive_span.benchmark.workloads import Row, Settings
from adaptive_span.hf import heads
from adaptive_span.hf.learned import HeadSpans
from adaptive_span.hf.losses import text_loss

SHARES = {"at the start": 1.0, "at 20 % of the cache": 0.2}
OWN = "own"


def table(settings: Settings, contexts: Sequence[int], repeats: int, with_memory: bool) -> dict[str, Row]:
    """Measure a model of random weights with the shape of SmolLM2-135M.

    Args:
        settings: What to measure.
        contexts: Tokens of the texts.
        repeats: How often.
        with_memory: Whether to measure memory, on a CPU in processes of their own.

    Returns:
        Per context and state of the fit: milliseconds of a step, the MiB that it adds at its peak beside the weights,
        and both as multiples of the model's own.
    """
    rows: dict[str, Row] = {}
    for context in contexts:
        names = [OWN, *SHARES]
        workloads = {name: make(settings, name, context) for name in names}
        seconds = time_interleaved(repeats, **workloads)
        memory = {
            name: peak_memory(settings.device, workloads[name], make, settings, name, context) if with_memory else None
            for name in names
        }
        for name in names:
            added, own = memory[name], memory[OWN]
            rows[f"{context:,}, {name}"] = {
                "ms": 1000 * seconds[name],
                "× own": seconds[name] / seconds[OWN],
                "MiB": added,
                "× own MiB": None if added is None or own is None else added / own,
            }
    return rows


def make(settings: Settings, name: str, context: int) -> Workload:
    """Return a step: `own` is the model's own pass, with the attention that it has; others fit spans."""
    model = smollm2(settings.device, settings.dtype).requires_grad_(False)
    tokens = torch.randint(model.config.vocab_size, (context,), device=settings.device)
    if name == OWN:
        model.set_attn_implementation("sdpa")
        embedded = model.get_input_embeddings()
        embedded.register_forward_hook(lambda module, given, output: output.requires_grad_())
    else:
        spans = heads.attach(model, heads.find(model), lambda layer: HeadSpans(layer.heads, context, 32, 4))
        for each in spans:
            each.span.fraction.requires_grad_()
            each.set_([SHARES[name] * context] * model.config.num_attention_heads)

    def step() -> None:
        text_loss(model, tokens).backward()

    return step
