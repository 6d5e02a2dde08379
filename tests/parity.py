"""Check a file of reference vectors: `python -m tests.parity FILE… [--attention NAME]`.

A file holds the configuration, parameters and tokens of a small model, what the reference implementation computed with
them (negative log-likelihoods, a loss and its gradients), and the losses, the spans and the end of a short training.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptive_span.attention.span import AdaptiveSpan
from adaptive_span.checkpoint.original import rename
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.optimizer_schema import OptimizerConfig
from adaptive_span.config.registry import ATTENTIONS
from adaptive_span.config.train_schema import TrainConfig
from adaptive_span.model.cache import HiddenStateCache
from adaptive_span.model.transformer import Transformer
from adaptive_span.training import optimizer as optimizers
from adaptive_span.training.schedule import learning_rate

# Largest errors allowed: nats, relative, relative norm, nats, tokens, and relative norm of what a training has changed:
# Adagrad's first steps are as large for a gradient that is little but rounding, of a position that heads barely see.
TOLERANCES = {"nll": 1e-5, "loss": 1e-5, "gradient": 1e-5, "train nll": 2e-3, "train span": 0.5, "trained": 2e-2}


def check(path: Path, attention: str = "auto") -> dict[str, float]:
    """The largest error of each kind."""
    vectors = torch.load(path, weights_only=True)
    c = vectors["config"]
    model = build(c, vectors["state_dict"], attention)
    errors, cache = evaluate(model, c, vectors)
    return errors | gradients(model, c, vectors, cache) | train(model, c, vectors)


def build(c: dict[str, Any], parameters: dict[str, Tensor], attention: str) -> Transformer:
    config = ModelConfig(
        name="vectors", num_layers=c["layers"], hidden_size=c["hidden"], num_heads=c["heads"],
        ffn_size=0 if c["persistent"] else c["inner"], memory_size=c["persistent"],
        max_span=c["max_span"], block_size=c["block"], adaptive_span=c["adaptive"], ramp=c["ramp"],
        trim_cache=c["trim_cache"], attention=attention,
    )  # fmt: skip
    if words := c["adaptive_io"]:
        config.cutoffs, config.division, config.tied = words["cutoffs"], words["div"], words["tied"]
    model = Transformer(config, c["vocab"])
    model.load_state_dict(rename(parameters))
    return model


def block(c: dict[str, Any], tokens: Tensor, index: int) -> tuple[Tensor, Tensor]:
    start = index * c["block"]
    return tokens[:, start : start + c["block"]], tokens[:, start + 1 : start + c["block"] + 1]


@torch.no_grad()
def evaluate(
    model: Transformer, c: dict[str, Any], vectors: dict[str, Any]
) -> tuple[dict[str, float], HiddenStateCache]:
    cache, errors = model.empty_cache(c["batch"]), []
    for index, expected in enumerate(vectors["eval_nll"]):
        nll, cache = model(*block(c, vectors["tokens"], index), cache)
        errors.append((nll - expected).abs().max())
    return {"nll": largest(errors)}, cache


def gradients(
    model: Transformer, c: dict[str, Any], vectors: dict[str, Any], cache: HiddenStateCache
) -> dict[str, float]:
    """Compare the two terms of a loss, the text's and the spans', and its gradients."""
    nll, _ = backward(model, c, block(c, vectors["tokens"], c["eval_blocks"]), cache)
    losses = torch.tensor([nll, c["span_loss"] * model.span_penalty().item()])
    expected_losses = torch.tensor([vectors["grad_nll_loss"], vectors["grad_span_loss"]])
    loss_errors = (losses - expected_losses).abs() / expected_losses.clamp(min=1e-9)
    expected = rename(vectors["grads"])  # of shared parameters, under one of their names
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys(), f"parameters on one side only: {got.keys() ^ expected.keys()}"
    gradient_errors = [(got[name] - grad).norm() / grad.norm() for name, grad in expected.items()]
    return {"loss": largest(list(loss_errors)), "gradient": largest(gradient_errors)}


def train(model: Transformer, c: dict[str, Any], vectors: dict[str, Any]) -> dict[str, float]:
    """Compare a training that starts on the block after the evaluated ones with these parameters and an empty cache:
    its losses, its spans, and the parameters that it ends with."""
    config = OptimizerConfig(name=c["optimizer"], lr=c["lr"], clip=c["grad_clip"], momentum=c["momentum"])
    schedule = TrainConfig(steps=c["train_steps"], warmup_steps=c["warmup"])
    optimizer = optimizers.build(config, model.named_parameters())
    cache, nll_errors, span_errors = model.empty_cache(c["batch"]), [], [torch.zeros(())]
    for step in range(c["train_steps"]):
        nll, cache = backward(model, c, block(c, vectors["tokens"], c["eval_blocks"] + step), cache)
        optimizers.set_rate(optimizer, learning_rate(step + 1, c["lr"], schedule))
        optimizers.update(optimizer, config, model.parameters())
        model.clamp_spans_()
        nll_errors.append((nll - vectors["train_nll"][step]).abs())
        if c["adaptive"]:
            spans = torch.stack([m.tokens() for m in model.modules() if isinstance(m, AdaptiveSpan)])
            span_errors.append((spans - vectors["train_spans"][step]).abs().max())
    first, trained, expected = rename(vectors["state_dict"]), model.state_dict(), rename(vectors["final_state_dict"])
    assert trained.keys() == expected.keys(), f"tensors on one side only: {trained.keys() ^ expected.keys()}"
    changes = [(trained[name] - last, last - first[name]) for name, last in expected.items()]
    trained_errors = [error.norm() / change.norm().clamp(min=1e-9) for error, change in changes]
    return {"train nll": largest(nll_errors), "train span": largest(span_errors), "trained": largest(trained_errors)}


def backward(
    model: Transformer, c: dict[str, Any], batch: tuple[Tensor, Tensor], cache: HiddenStateCache
) -> tuple[float, HiddenStateCache]:
    """Gradients of one step, in `batch_split` slices; the mean negative log-likelihood and the next cache."""
    model.zero_grad()
    split, total, caches = c["batch_split"], 0.0, []
    layers = zip(*(x.chunk(split) for x in cache.layers), strict=True)  # of each slice
    slices = zip(*(x.chunk(split) for x in batch), layers, strict=True)
    for tokens, targets, past in slices:
        nll, new = model(tokens, targets, HiddenStateCache(list(past)))
        ((nll.mean() + c["span_loss"] * model.span_penalty()) / split).backward()
        total += nll.mean().item() / split
        caches.append(new)
    layers = zip(*(cache.layers for cache in caches), strict=True)
    return total, HiddenStateCache([torch.cat(parts) for parts in layers])


def largest(errors: list[Tensor]) -> float:
    """NaN if any of them is."""
    return torch.stack(errors).max().item()


def main() -> int:
    parser = argparse.ArgumentParser(description="Check files of reference vectors.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--attention", default="auto", choices=[*ATTENTIONS])
    arguments = parser.parse_args()
    if arguments.attention == "fused" and not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # slow: about a minute a file
    failed = False
    for path in arguments.files:
        print(path)
        for kind, error in check(path, arguments.attention).items():
            ok = error <= TOLERANCES[kind]
            failed |= not ok
            print(f"  {kind:12} {error:9.2e}   allowed {TOLERANCES[kind]:g}   {'ok' if ok else 'FAILED'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
