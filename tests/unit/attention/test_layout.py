"""What lies positions first, as on a GPU, gives what lies rows first."""

import pytest
import torch

from adaptive_span.attention import HeadGroup
from adaptive_span.attention.context import HiddenStates, KeysValues, join, next_past
from adaptive_span.model.blocks import linear
from adaptive_span.model.output_head import OutputHead

fused = pytest.importorskip(
    "adaptive_span.model.elementwise.fused", reason="there is no triton for this system", exc_type=ImportError
)

B, T, M, C, H = 3, 20, 6, 8, 4
GROUPS = [HeadGroup([2, 0], 3), HeadGroup([1], 9), HeadGroup([3], 14)]


def positions_first(tensor):
    """The same numbers, in another order in memory."""
    return tensor.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(tensor.requires_grad)


def normal(*shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()


def both_ways(compute, *tensors):
    """Results and gradients of what lies rows first, and of the same positions first."""
    found = []
    for lay in (lambda tensor: tensor, positions_first):
        inputs = [lay(tensor) if tensor.dim() == 3 else tensor for tensor in tensors]
        outputs = compute(*inputs)
        grads = [normal(*output.shape, seed=place, dtype=output.dtype) for place, output in enumerate(outputs)]
        found.append((outputs, torch.autograd.grad(outputs, inputs, grads)))
    return found


@pytest.mark.parametrize("known", [0, 5, 17])
def test_projections(known):
    past = normal(B, known, C, seed=100).detach()

    def compute(present, *weights):
        states = join(past, present, 14)
        assert states.shape == (B, 14 + M, C)
        return [x for group in HiddenStates(states, present, weights, H).project(GROUPS) for x in group[:2]]

    expected, got = both_ways(compute, normal(B, M, C, seed=1), *(normal(C, C, seed=seed) for seed in (2, 3, 4)))
    torch.testing.assert_close(got, expected)


def test_gradients_of_weights_are_rounded_once_in_16_bits():
    tensors = [normal(64, M, C, seed=1), *(normal(C, C, seed=seed) for seed in (2, 3, 4))]
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        present, *weights = (tensor.detach().bfloat16().to(dtype).requires_grad_() for tensor in tensors)
        projected = HiddenStates(join(present[:, :0].detach(), present, 14), present, weights, H).project(GROUPS)
        outputs = [x for each in projected for x in each[:2]]
        grads = [normal(*x.shape, seed=place).detach().bfloat16().to(dtype) for place, x in enumerate(outputs)]
        found.append([grad.double() for grad in torch.autograd.grad(outputs, weights, grads)])
    torch.testing.assert_close(found[1], found[0], rtol=2**-7, atol=0.05)


def test_projections_from_kept_keys_and_values():
    weights = [normal(C, C, seed=seed) for seed in (2, 3, 4)]
    found = []
    with torch.no_grad():
        for lay in (lambda tensor: tensor, positions_first):
            past = []
            for block in range(3):
                projected = KeysValues(past, lay(normal(B, M, C, seed=block)), weights, H).project(GROUPS)
                found.append([each[:2] for each in projected])
                past = next_past([each.keys_values for each in projected], M)
    torch.testing.assert_close(found[3:], found[:3])


def test_output_layers():
    def compute(states, weight, bias):
        layer = OutputHead(C, 11, dtype=torch.float64)
        layer._parameters.update(weight=weight, bias=bias)
        return [linear(layer, states), layer.nll(states, torch.arange(B * M).view(B, M) % 11)]

    expected, got = both_ways(compute, normal(B, M, C, seed=1), normal(11, C, seed=2), normal(11, seed=3))
    torch.testing.assert_close(got, expected)


def test_what_surrounds_products():
    def compute(residual, branch, weight, bias, expand, expand_bias, contract):
        exact, operand = fused.AddAndNorm.apply(residual, branch, None, weight, bias, 1e-5, True, False, True)
        return [exact, fused.FeedForwardFunction.apply(operand, expand, expand_bias, contract, 0.0, None)]

    shapes = ((B, M, C), (B, M, C), (C,), (C,), (16, C), (16,), (C, 16))
    inputs = [normal(*shape, seed=seed, dtype=torch.float32) for seed, shape in enumerate(shapes)]
    expected, got = both_ways(compute, *inputs)
    torch.testing.assert_close(got, expected)
