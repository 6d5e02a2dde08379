"""Train a byte-level Transformer with learned spans in a loop of your own, without Hydra and run directories.

python examples/train_without_hydra.py            # on the sources of Python's standard library
python examples/train_without_hydra.py book.txt   # on a text of yours
"""

import math
import sys
import sysconfig
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor

from adaptive_span import ModelConfig, Transformer

BATCH, BLOCK, HELD_OUT = 16, 64, 10_000  # rows; tokens; bytes at the end of the text
MODEL = ModelConfig(
    "mine", num_layers=4, hidden_size=128, ffn_size=512, num_heads=4, max_span=512, block_size=BLOCK, span_init=0.1
)


@torch.no_grad()
def bits_per_byte(model: Transformer, text: Tensor) -> float:
    """Score a text (1, n) as a stream: each byte once, from all the bytes before it that the model can see."""
    model.eval()
    cache, nats = model.empty_inference_cache(), 0.0
    for tokens, targets in zip(text[:, :-1].split(BLOCK, 1), text[:, 1:].split(BLOCK, 1), strict=True):
        nll, cache = model(tokens, targets, cache)
        nats += float(nll.sum())
    model.train()
    return nats / (text.size(1) - 1) / math.log(2)


def main(file: Path | None = None, steps: int = 300, validate_every: int = 50) -> tuple[Transformer, float]:
    """Train, print the score of the held-out text and the spans now and then, and return the model and the score."""
    files = [file] if file else sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    data = bytearray(b"".join(each.read_bytes() for each in files))
    text = torch.frombuffer(data, dtype=torch.uint8).long()
    length = (len(text) - HELD_OUT) // BATCH
    train, valid = text[: BATCH * length].view(BATCH, length), text[None, -HELD_OUT:]

    torch.manual_seed(1)
    model = Transformer(MODEL, vocab_size=256)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step, start in enumerate(islice(cycle(range(0, train.size(1) - BLOCK, BLOCK)), steps), start=1):
        if start == 0:
            cache = model.empty_cache(BATCH)
        block = train[:, start : start + BLOCK + 1]
        nll, cache = model(block[:, :-1], block[:, 1:], cache)  # (B, M), nats; every row continues where it was
        loss = nll.mean() + 2e-6 * model.span_penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.clamp_spans_()
        if step % validate_every == 0 or step == steps:
            score = bits_per_byte(model, valid)
            spans = [[round(span) for span in layer] for layer in model.spans().tolist()]
            print(f"step {step}: {score:.3f} bits per byte, spans {spans}")
    return model, score


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
