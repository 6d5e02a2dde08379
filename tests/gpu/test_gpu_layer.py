"""The layer of one's own model on a GPU: against its definition in double precision, and without waiting for it."""

import pytest
import torch

from adaptive_span import AdaptiveAttention
from tests import waiting

pytestmark = pytest.mark.gpu

CASES = [
    {"causal": causal, "positions": positions, "num_kv_heads": 2}
    for causal in (True, False)
    for positions in ("relative", "rotary")
]


def output_and_gradients(options, implementation, device, dtype):
    torch.manual_seed(0)
    layer = AdaptiveAttention(256, 4, 400, span_init=0.3037, implementation=implementation, **options)
    layer.span.fraction.data = torch.tensor([0.0, 0.1037, 0.4037, 1.0])  # off the kinks of the mask
    hidden, direction = torch.randn(2, 2, 500, 256)
    padding = torch.arange(500) >= torch.tensor([[500], [300]])
    layer, hidden = layer.to(device, dtype), hidden.to(device, dtype).requires_grad_()
    output = layer(hidden, key_padding_mask=padding.to(device))
    (output * direction.to(output)).sum().backward()
    return [output, hidden.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("implementation", ["banded", "fused"])
@pytest.mark.parametrize("options", CASES)
def test_it_is_its_definition(options, implementation):
    expected = output_and_gradients(options, "dense", "cpu", torch.float64)
    got = output_and_gradients(options, implementation, "cuda", torch.float32)
    for a, b in zip(got, expected, strict=True):
        assert (a.double().cpu() - b).norm() < 1e-4 * (1 + b.norm())


def test_a_training_loop_does_not_wait():
    layer = AdaptiveAttention(256, 4, 400, causal=False, num_kv_heads=2).cuda()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    hidden = torch.randn(2, 500, 256, device="cuda")
    padding = torch.zeros(2, 500, dtype=torch.bool, device="cuda")

    def step():
        optimizer.zero_grad()
        (layer(hidden, key_padding_mask=padding).square().mean() + 1e-5 * layer.span_penalty()).backward()
        optimizer.step()
        layer.clamp_spans_()

    for _ in range(40):  # kernels are built, and it is known how slowly the spans grow
        step()
    while layer._bounds[0].updates:  # until just after a reading
        step()
    with waiting.refused():
        for _ in range(10):
            step()
