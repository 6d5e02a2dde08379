"""What a model needs for held-out text."""

import pytest
import torch
from torch.nn import functional

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


@pytest.mark.parametrize("first", [1, 30])
def test_the_loss_of_a_text_has_the_gradient_of_a_direct_computation(monkeypatch, first):
    monkeypatch.setattr(losses, "ROWS", 7)
    model = tiny("llama", vocab_size=257).double()
    tokens = torch.randint(257, (42,), generator=torch.Generator().manual_seed(0))
    weight = model.get_input_embeddings().weight.requires_grad_()
    direct = functional.cross_entropy(model(tokens[None]).logits[0, first - 1 : -1], tokens[first:])
    [expected] = torch.autograd.grad(3 * direct, weight)
    loss = losses.text_loss(model, tokens, first)
    torch.testing.assert_close(loss, direct)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, weight, retain_graph=True)[0], expected)
    with pytest.raises(RuntimeError, match="inplace"):  # the gradient that is kept has been scaled
        torch.autograd.grad(loss, weight)
