"""Give a small decoder of your own attention whose heads learn how far to look, in place of torch's.

The only lines that differ from a decoder with `torch.nn.MultiheadAttention` are marked with ←. Each target is the pair
of symbols 3 and 20 positions back, so one head has to see 3 tokens and another 20, and none needs more.

    python examples/decoder_with_spans.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_span import AdaptiveAttention

NEAR, FAR, MAX_SPAN = 3, 20, 48  # tokens
SYMBOLS, HEADS, SIZE, LENGTH = 8, 2, 32, 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # ← nn.MultiheadAttention(SIZE, HEADS, batch_first=True)
        self.attention = AdaptiveAttention(SIZE, HEADS, MAX_SPAN, span_init=0.5, ramp=4, bias=True)
        self.feed_forward = nn.Sequential(nn.Linear(SIZE, 4 * SIZE), nn.ReLU(), nn.Linear(4 * SIZE, SIZE))
        self.norms = nn.ModuleList([nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)])

    def forward(self, hidden: Tensor) -> Tensor:  # (B, M, C) → (B, M, C)
        hidden = hidden + self.attention(self.norms[0](hidden))  # ← no mask: it is causal
        output: Tensor = hidden + self.feed_forward(self.norms[1](hidden))
        return output


def main(steps: int = 200) -> list[float]:
    """Train, print loss and spans, and return the last spans, in tokens, the shorter first."""
    torch.manual_seed(1)
    block = Block()
    model = nn.Sequential(nn.Embedding(SYMBOLS, SIZE), block, nn.Linear(SIZE, 2 * SYMBOLS))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.004)
    for step in range(1, steps + 1):
        text = torch.randint(SYMBOLS, (16, LENGTH))
        targets = torch.stack([text.roll(NEAR, 1), text.roll(FAR, 1)], dim=2)[:, FAR:]  # (B, M, 2)
        logits = model(text)[:, FAR:].unflatten(2, (2, SYMBOLS))
        loss = F.cross_entropy(logits.flatten(0, 2), targets.flatten())
        optimizer.zero_grad()
        (loss + 0.003 * block.attention.span_penalty()).backward()  # ← the price of looking far
        optimizer.step()
        block.attention.clamp_spans_()  # ← after each update
        if step % 50 == 0:
            spans = sorted(block.attention.spans().tolist())
            print(f"step {step}: {loss:.3f} nats, spans {spans[0]:.1f} and {spans[1]:.1f} tokens")
    return sorted(block.attention.spans().tolist())


if __name__ == "__main__":
    main()
