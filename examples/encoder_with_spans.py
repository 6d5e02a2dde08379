"""Give a small encoder of your own attention whose heads learn how far to look to each side, in place of torch's.

The only lines that differ from an encoder with `torch.nn.MultiheadAttention` are marked with ←. Each target is the pair
of symbols 3 positions before and 12 after. Texts of different lengths are padded.

    python examples/encoder_with_spans.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_span import AdaptiveAttention

BEFORE, AFTER, MAX_SPAN = 3, 12, 32  # tokens
SYMBOLS, HEADS, SIZE, LENGTH = 8, 2, 32, 48


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, SIZE)
        # ← nn.MultiheadAttention(SIZE, HEADS, batch_first=True)
        self.attention = AdaptiveAttention(SIZE, HEADS, MAX_SPAN, causal=False, span_init=0.5, ramp=4, bias=True)
        self.norm = nn.LayerNorm(SIZE)
        self.feed_forward = nn.Sequential(nn.Linear(SIZE, 4 * SIZE), nn.ReLU(), nn.Linear(4 * SIZE, 2 * SYMBOLS))

    def forward(self, text: Tensor, padding: Tensor) -> Tensor:  # (B, M) both → (B, M, 2, SYMBOLS)
        hidden = self.embedding(text)
        hidden = self.norm(hidden + self.attention(hidden, key_padding_mask=padding))  # ← as torch's
        output: Tensor = self.feed_forward(hidden).unflatten(2, (2, SYMBOLS))
        return output


def main(steps: int = 200) -> tuple[float, Tensor]:
    """Train, print loss and spans, and return the last loss in nats, and the spans before and after, (2, H)."""
    torch.manual_seed(1)
    model = Encoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.004)
    for step in range(1, steps + 1):
        text = torch.randint(SYMBOLS, (16, LENGTH))
        lengths = torch.randint(LENGTH // 2, LENGTH + 1, (16, 1))
        padding = torch.arange(LENGTH) >= lengths  # (B, M), true where there is no text
        targets = torch.stack([text.roll(BEFORE, 1), text.roll(-AFTER, 1)], dim=2)  # (B, M, 2)
        places = torch.arange(LENGTH)
        targets[(places < BEFORE) | (places >= lengths - AFTER)] = -100  # what cross_entropy passes over
        loss = F.cross_entropy(model(text, padding).flatten(0, 2), targets.flatten())
        optimizer.zero_grad()
        (loss + 0.003 * model.attention.span_penalty()).backward()  # ← the price of looking far
        optimizer.step()
        model.attention.clamp_spans_()  # ← after each update
        if step % 50 == 0:
            before, after = model.attention.spans().int().tolist()
            print(f"step {step}: {loss:.3f} nats, spans {before} before and {after} after")
    return loss.item(), model.attention.spans()


if __name__ == "__main__":
    main()
