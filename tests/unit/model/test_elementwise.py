"""What surrounds the products: Triton's kernels, interpreted, against double precision; weights cast once."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from adaptive_span.model import elementwise
from adaptive_span.model.low_precision import low_precision
from adaptive_span.model.transformer import Transformer
from adaptive_span.training import optimizer
from tests.conftest import ENVIRONMENT, ROOT
from tests.unit.model.test_model import small, with_spans

fused = pytest.importorskip(
    "adaptive_span.model.elementwise.fused", reason="there is no triton for this system", exc_type=ImportError
)

# Triton's interpreter has no bfloat16 to speak of.
LOW = {"cpu": torch.float16, "cuda": torch.bfloat16}
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def cases(*shapes, on_gpu):
    return [("cpu", *shape) for shape in shapes] + [pytest.param("cuda", *on_gpu, marks=pytest.mark.gpu)]


def normal(*shape, dtype=torch.float32, seed=0, device="cpu"):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(device, dtype).requires_grad_()


def exactly(*tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("is_low", [False, True])
@pytest.mark.parametrize(
    ("device", "rows", "size", "biased"), cases(((2, 17), 48, True), ((1, 3), 300, False), on_gpu=((8, 511), 768, True))
)
@pytest.mark.parametrize(("used", "kind"), [
    ("exact", "post layer"), ("operand", "post rms"), ("both", "post layer"), ("both", "pre layer"),
    ("operand", "pre rms"),
])  # fmt: skip
def test_add_and_norm(device, rows, size, biased, is_low, used, kind):
    dtype = LOW[device] if is_low else torch.float32
    residual = normal(*rows, size, device=device)
    branch = normal(*rows, size, dtype=dtype, seed=1, device=device)
    bias = normal(size, seed=2, device=device) if biased else None
    is_pre, is_layer = kind.startswith("pre"), kind.endswith("layer")
    norm = (nn.LayerNorm if is_layer else nn.RMSNorm)(size, eps=1e-5, device=device)
    norm.weight.data = normal(size, seed=3, device=device).data
    norm.weight.data[0] = 0  # what the norm was applied to cannot be had from its output
    if is_layer:
        norm.bias.data = normal(size, seed=4, device=device).data
    inputs = [x for x in (residual, branch, bias, *norm.parameters()) if x is not None]
    r, b, *rest = exactly(*inputs)
    total = r + b + (rest[0] if biased else 0)
    weights = rest[1:] if biased else rest
    normed = (F.layer_norm if is_layer else F.rms_norm)(total, (size,), *weights, eps=norm.eps)
    expected = [total if is_pre else normed, normed]
    grads = [normal(*rows, size, dtype=x, seed=5, device=device).detach() for x in (torch.float32, dtype)]
    grads = {"exact": [grads[0], None], "operand": [None, grads[1]], "both": grads}[used]
    pairs = [(x, grad.double()) for x, grad in zip(expected, grads, strict=True) if grad is not None]
    torch.autograd.backward(*zip(*pairs, strict=True))

    def run():
        got = fused.add_and_norm(residual, branch, bias, norm, is_pre)
        wanted = [(x, grad) for x, grad in zip(got, grads, strict=True) if grad is not None]
        return got, torch.autograd.grad([x for x, _ in wanted], inputs, [grad for _, grad in wanted])

    got, found = run()
    assert (got.exact.dtype, got.operand.dtype) == (torch.float32, dtype)
    assert relative(got.exact, expected[0]) < 2e-6
    assert relative(got.operand, normed) < TOLERANCE[dtype]
    assert is_pre or torch.equal(got.operand, got.exact.to(dtype))
    assert [x.dtype for x in found] == [x.dtype for x in inputs]
    errors = [relative(x, y.grad) for x, y in zip(found, (r, b, *rest), strict=True)]
    assert max(errors) < TOLERANCE[dtype], errors
    again, found_again = run()
    assert all(map(torch.equal, (*got, *found), (*again, *found_again)))


def feed_forward_inputs(dtype, rows, size, inner, device="cpu"):
    return [
        normal(*rows, size, dtype=dtype, device=device),
        (normal(inner, size, seed=1, device=device).detach() * size**-0.5).to(dtype).requires_grad_(),
        normal(inner, seed=2, device=device),
        (normal(size, inner, seed=3, device=device).detach() * inner**-0.5).to(dtype).requires_grad_(),
    ]


@pytest.mark.parametrize("is_low", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("device", "rows", "size", "inner"), cases(((2, 21), 24, 272), ((1, 1), 24, 16), on_gpu=((8, 511), 768, 4096))
)
@pytest.mark.parametrize("power", [1, 2])
def test_feed_forward(device, rows, size, inner, dropout, is_low, power):
    """The mask is read off what is kept for the backward pass, and must be the one of the forward pass."""
    dtype = LOW[device] if is_low else torch.float32
    inputs = feed_forward_inputs(dtype, rows, size, inner, device)
    words = torch.tensor([12345, -678], dtype=torch.int32, device=device) if dropout else None
    got = fused.FeedForwardFunction.apply(*inputs, dropout, words, power)
    kept = got.grad_fn.saved_tensors[3].view(*rows, inner)
    scale = 1 / (1 - round(dropout * 2**16) / 2**16)
    x, w1, b1, w2 = exactly(*inputs)
    before = F.linear(x, w1, b1)
    assert (before[kept != 0] > -1e-2).all()  # what is rounded may have the other sign
    assert dropout or (before[kept == 0] < 1e-2).all()
    expected = F.linear(before**power * (kept != 0) * scale, w2)
    grad = normal(*rows, size, dtype=dtype, seed=4, device=device).detach()
    found = torch.autograd.grad(got, inputs, grad)
    exact = (expected, *torch.autograd.grad(expected, (x, w1, b1, w2), grad.double()))
    errors = list(map(relative, (got, *found), exact))
    assert max(errors) < TOLERANCE[dtype], errors
    again = fused.FeedForwardFunction.apply(*inputs, dropout, words, power)
    assert all(map(torch.equal, (got, *found), (again, *torch.autograd.grad(again, inputs, grad))))


def mask(words):
    """What is kept of 2¹⁶ numbers that are all one."""
    one = torch.ones(2**8, 1, requires_grad=True)
    output = fused.FeedForwardFunction.apply(
        one, one, torch.zeros(2**8), one.t(), 0.3, torch.tensor(words, dtype=torch.int32)
    )
    return output.grad_fn.saved_tensors[3].flatten() > 0


def test_numbers_are_dropped_at_that_rate_each_for_itself():
    count = 2**16
    first, other = mask([1, 2]), mask([1, 3])
    for kept in (first, other):
        assert kept.double().mean().item() == pytest.approx(0.7, abs=4 * (0.21 / count) ** 0.5)
    pairs = {"words": (first, other), "first word": (first, mask([2, 2]))}
    pairs |= {f"{apart} apart": (first[apart:], first[:-apart]) for apart in (1, 2, 32, 256, 2048, 4096)}
    for name, (one, two) in pairs.items():
        assert (one & two).double().mean().item() == pytest.approx(0.49, abs=5 * (0.25 / len(one)) ** 0.5), name


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("is_tensor", [False, True])
def test_adagrad(device, is_tensor, monkeypatch):
    """Tensors of several blocks, of a part of one, and of one number; one whose gradient is clipped; gradients that are
    elsewhere in the second step."""
    rate, sizes = torch.tensor(0.1, device=device) if is_tensor else 0.1, (5000, 3, 2048, 1, 4096)

    def updated():
        params = [nn.Parameter(normal(size, seed=size, device=device).detach()) for size in sizes]
        adagrad, norms = optimizer.ClippedAdagrad(params, rate, clip=0.5), []
        for step in range(3):
            for index, (param, size) in enumerate(zip(params, sizes, strict=True)):
                param.grad = normal(size, seed=step, device=device).detach() * (1e-4 if index == 4 else 1)
            norms.append(adagrad.step())
        return [*params, *(adagrad.state[param]["sum"] for param in params), torch.cat(norms)]

    monkeypatch.setattr(elementwise, "in_triton", lambda tensor: False)
    expected = updated()
    monkeypatch.setattr(elementwise, "in_triton", lambda tensor: True)
    got = updated()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert all(map(torch.equal, got, updated()))


def test_not_a_number_stays_one():
    """Else a training that diverges would go on."""
    inputs = feed_forward_inputs(torch.float32, (1, 2), 8, 16)
    inputs[0].data[0, 1] = float("nan")
    got = fused.FeedForwardFunction.apply(*inputs, 0.5, torch.zeros(2, dtype=torch.int32))
    assert got.isnan().all(2).tolist() == [[False, True]]


@pytest.mark.parametrize(("checkpointing", "changes"), [
    (False, {}), (True, {}), (True, {"norm": "pre", "norm_kind": "rms", "activation": "relu2"}),
    (False, {"norm": "pre", "activation": "swiglu"}),
], ids=str)  # fmt: skip
def test_a_model_computes_the_same_with_the_kernels(checkpointing, changes, monkeypatch):
    torch.manual_seed(0)
    model = with_spans(Transformer(small(attention="banded", **changes), 11, checkpointing), 0)
    text = torch.randint(11, (2, 25))

    def run():
        model.zero_grad()
        nll, _ = model(text[:, :-1], text[:, 1:], model.empty_cache(2))
        nll.mean().backward()
        return [nll, *(parameter.grad for parameter in model.parameters())]

    expected = run()
    monkeypatch.setattr(elementwise, "in_triton", lambda tensor: True)
    torch.testing.assert_close(run(), expected)


def test_activation_checkpointing_drops_the_same_again(monkeypatch):
    monkeypatch.setattr(elementwise, "in_triton", lambda tensor: True)
    torch.manual_seed(0)
    model = Transformer(small(attention="banded", ffn_dropout=0.5), 11)
    text, found = torch.randint(11, (2, 25)), []
    for model.activation_checkpointing in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        nll, _ = model(text[:, :-1], text[:, 1:], model.empty_cache(2))
        nll.mean().backward()
        found.append([nll, *(parameter.grad.clone() for parameter in model.parameters())])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_for_gpus_and_not_again_for_another_batch(capability):
    command = [sys.executable, "-m", "tests.compile_elementwise", str(capability)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    *compiled, count = map(json.loads, result.stdout.splitlines())
    assert count == {"before": 25, "after": 25}
    assert {kernel["stack"] for kernel in compiled} == {0}
    assert max(kernel["loads"] for kernel in compiled if "adagrad" not in kernel["kernel"]) <= 11  # several bytes each


@pytest.mark.parametrize("dtype", [torch.float32, LOW["cpu"]], ids=str)
def test_their_types_are_their_own_choice(dtype):
    """Whatever autocast would make of their products."""
    inputs = feed_forward_inputs(dtype, (1, 2), 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        got = fused.FeedForwardFunction.apply(*inputs, 0.0, None)
        norms = fused.AddAndNorm.apply(
            inputs[0].float(), got, None, torch.ones(8), torch.zeros(8), 1e-5, False, False, True
        )
        got.sum().backward()
    assert (got.dtype, norms[0].dtype, norms[1].dtype) == (dtype, torch.float32, dtype)
    assert [x.grad.dtype for x in inputs] == [x.dtype for x in inputs]


class Casts(TorchDispatchMode):
    """Counts copies of tensors of these shapes from fp32 to bf16."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.single, self.at_once = shapes, 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        if function.overloadpacket is torch.ops.aten._foreach_copy_:
            self.at_once += 1
        elif function.overloadpacket is torch.ops.aten._to_copy and result.dtype != arguments[0].dtype:
            self.single += result.shape in self.shapes
        return result


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"ffn_size": 0, "memory_size": 5}], ids=str)
def test_weights_are_cast_once_a_step_and_gradients_once_a_slice(changes, slices):
    torch.manual_seed(0)
    model = with_spans(Transformer(small(attention="banded", num_heads=2, **changes), 13), 0)
    text = torch.randint(13, (2, 25))
    before = {name: id(parameter) for name, parameter in model.named_parameters()}

    def step(precision):
        model.zero_grad()
        with low_precision(model, precision), Casts({p.shape for p in model.parameters() if p.dim() > 1}) as casts:
            for part in text.chunk(slices):
                with torch.autocast("cpu", torch.bfloat16):
                    nll, _ = model(part[:, :-1], part[:, 1:], model.empty_cache(len(part)))
                (nll.mean() / slices).backward()
        return casts, [parameter.grad for parameter in model.parameters()]

    (autocast, _), (casts, got) = step("fp32"), step("bf16")
    assert autocast.single > 10
    assert (casts.single, casts.at_once) == (0, slices)
    assert {x.dtype for x in got} == {torch.float32}
    model.zero_grad()
    nll, _ = model(text[:, :-1], text[:, 1:], model.empty_cache(2))
    nll.mean().backward()
    exact = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert relative(torch.cat([grad.flatten() for grad in got]), exact) < 0.01
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


def test_scoring_casts_weights_once():
    model = Transformer(small(attention="banded", num_heads=2), 13)
    text = torch.randint(13, (2, 25))
    shapes = {parameter.shape for parameter in model.parameters() if parameter.dim() > 1}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), Casts(shapes) as casts:
        with low_precision(model, "bf16"):
            for cache in (model.empty_inference_cache(), model.empty_inference_cache()):
                model(text[:, :-1], text[:, 1:], cache)
    assert (casts.single, casts.at_once) == (0, 1)
