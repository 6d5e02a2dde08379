"""Put a learned span into a plain PyTorch attention, and watch it find the distances that a task needs.

Each target is the pair of symbols 5 and 40 positions back, so one head has to see 5 tokens and the other 40. Both
start at 64. The penalty shortens each span until the loss resists.

    python examples/span_in_plain_attention.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_span import AdaptiveSpan

NEAR, FAR, MAX_SPAN = 5, 40, 64  # tokens
SYMBOLS, HEADS, SIZE, LENGTH = 8, 2, 32, 80


class Attention(nn.Module):
    """Score a key by its distance alone, and hide from each head what lies beyond its span."""

    def __init__(self) -> None:
        super().__init__()
        self.span = AdaptiveSpan(HEADS, MAX_SPAN, ramp=4, init=1.0)  # a fraction of MAX_SPAN
        self.value = nn.Linear(SIZE, SIZE)
        self.score = nn.Parameter(torch.zeros(HEADS, LENGTH))

    def forward(self, hidden: Tensor) -> Tensor:  # (B, M, C) → (B, M, C)
        positions = torch.arange(hidden.size(1))
        distances = positions[:, None] - positions  # (M, M)
        value = self.value(hidden).unflatten(2, (HEADS, -1)).transpose(1, 2)  # (B, H, M, D)
        scores = self.score[:, distances.clamp(min=0)].masked_fill(distances < 0, float("-inf"))  # (H, M, M)
        weights = scores.softmax(2) * self.span.mask(distances)
        weights = weights / (weights.sum(2, keepdim=True) + 1e-8)
        output: Tensor = (weights @ value).transpose(1, 2).flatten(2)
        return output


def main(steps: int = 400) -> list[float]:
    """Train, print the spans of both heads, and return the last ones, in tokens, the shorter first."""
    torch.manual_seed(1)
    embed, attention, output = nn.Embedding(SYMBOLS, SIZE), Attention(), nn.Linear(SIZE, 2 * SYMBOLS)
    optimizer = torch.optim.Adam(nn.ModuleList([embed, attention, output]).parameters(), lr=0.02, eps=1e-4)
    for step in range(1, steps + 1):
        text = torch.randint(SYMBOLS, (16, LENGTH))
        targets = torch.stack([text.roll(NEAR, 1), text.roll(FAR, 1)], dim=2)[:, FAR:]  # (B, M, 2)
        logits = output(attention(embed(text)))[:, FAR:].unflatten(2, (2, SYMBOLS))
        loss = F.cross_entropy(logits.flatten(0, 2), targets.flatten())
        optimizer.zero_grad()
        (loss + 0.002 * attention.span.penalty()).backward()
        optimizer.step()
        attention.span.clamp_()
        spans = sorted(attention.span.effective().tolist())
        if step % 100 == 0:
            print(f"step {step}: {loss:.3f} nats, spans {spans[0]:.1f} and {spans[1]:.1f} tokens")
    return spans


if __name__ == "__main__":
    main()
