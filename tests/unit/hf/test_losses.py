"""What a model needs for held-out text."""

import pytest
import torch

from adaptive_span.hf import losses
from tests.unit.hf.tiny_models import tiny


def test_losses_are_those_of_a_direct_computation_in_float64(monkeypatch):
    monkeypatch.setattr(losses, "ROWS", 7)  # of which no quarter of the context is a multiple
    model, windows = (
        tiny("llama", vocab_size=257),
        torch.randint(257, (3, 42), generator=torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():
        log = model.double()(windows).logits[:, :-1].log_softmax(2)
        nats = -log.gather(2, windows[:, 1:, None])[..., 0]  # (3, 41)
    measured = losses.measure(model.float(), windows)
    assert measured["tokens"] == nats.numel()
    assert measured["nats_per_token"] == pytest.approx(float(nats.mean()), abs=1e-5)
    parts = [nats[:, first:last].mean() for first, last in ((0, 10), (10, 20), (20, 31), (31, 41))]
    assert measured["by_quarter"] == pytest.approx([float(part) for part in parts], abs=1e-5)
