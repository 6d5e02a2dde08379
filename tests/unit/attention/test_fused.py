"""Fused attention: interpreted in fp32, against dense attention in double precision; compiled, not run, for GPUs."""

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from adaptive_span.attention import HIDDEN, SpanGeometry
from adaptive_span.attention.context import HiddenStates, join
from adaptive_span.attention.dispatch import choose, chosen, why_not_fused
from adaptive_span.errors import UserError
from tests import parity, waiting
from tests.conftest import ENVIRONMENT, ROOT
from tests.dropped import Given
from tests.unit.attention.test_attention import layers, output_and_gradients
from tests.unit.model.test_parity import VECTORS

fused = pytest.importorskip(
    "adaptive_span.attention.fused", reason="there is no triton for this system", exc_type=ImportError
)

# Bytes of a thread for what its registers cannot hold: so much stays in L1, beside the shared memory of two programs. A
# tile that is too large asks for thousands.
STACK = {"fp32": 1024}  # elsewhere 256; three products of TF32 ask for more, and still take a fourth of the time
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a program may have
CPU = torch.device("cpu")


def relative(got, expected):
    return ((got - expected).norm() / expected.norm().clamp(min=1)).item()


def alike(queries, keys):
    """The same tiles for every kernel."""
    return {
        case: {kernel: (queries, tile[1] and keys, 4, 1) for kernel, tile in kernels.items()}
        for case, kernels in fused.TILES.items()
    }


def compare(layer):
    """Where a query sees one key alone, gradients of scores are differences of equal numbers: each error counts against
    no less than a tenth of the largest gradient."""
    expected = output_and_gradients("dense", layer)
    largest = max(each.norm().item() for each in [torch.ones(1), *expected])
    got = output_and_gradients("fused", layer, dtype=torch.float32)
    errors = [(a - b).norm() / b.norm().clamp(min=largest / 10) for a, b in zip(got, expected, strict=True)]
    assert max(errors) < 1e-5, errors


@settings(max_examples=10)
@given(layers(max_spans=(1, 31, 32, 33, 64, 100, 200), blocks=(1, 7, 31, 32, 33, 65), most_heads=3))
def test_it_computes_what_dense_does(layer):
    compare(layer)


@pytest.mark.parametrize("memory_size", [0, 40])
def test_it_computes_what_dense_does_without_learned_spans(memory_size):
    shape = {"batch": 2, "heads": 2, "head_size": 20, "block": 33, "past": 50, "max_span": 70, "ramp": 1, "seed": 0}
    expected = output_and_gradients("dense", (shape, None, memory_size))
    errors = list(
        map(relative, output_and_gradients("fused", (shape, None, memory_size), dtype=torch.float32), expected)
    )
    assert max(errors) < 1e-5, errors


@pytest.mark.parametrize(("memory_size", "head_size"), [(0, 72), (40, 20)])
def test_in_16_bits_it_computes_what_dense_does(memory_size, head_size):
    """In fp16, which takes the way of bf16 through the kernels: Triton's interpreter has no bf16 of use."""
    shape = {"batch": 2, "heads": 3, "head_size": head_size, "block": 33, "past": 50, "max_span": 160, "ramp": 32}
    shape["seed"] = 0
    layer = shape, [100.0, 0.0, 31.5], memory_size
    expected = output_and_gradients("dense", layer)
    errors = list(map(relative, output_and_gradients("fused", layer, dtype=torch.float16), expected))
    assert max(errors) < 3e-3, errors


@pytest.mark.parametrize("name", ["adaptive", "persistent"])
def test_vectors(name, monkeypatch):
    """Outputs and gradients of two of them; `python -m tests.parity FILE… --attention fused` checks all of all."""
    monkeypatch.setattr(fused, "TILES", alike(32, 256))  # fewer steps
    [path] = [path for path in VECTORS if path.stem == name]
    vectors = torch.load(path, weights_only=True)
    model = parity.build(vectors["config"], vectors["state_dict"], "fused")
    errors, cache = parity.evaluate(model, vectors["config"], vectors)
    errors |= parity.gradients(model, vectors["config"], vectors, cache)
    assert {kind: error for kind, error in errors.items() if not error <= parity.TOLERANCES[kind]} == {}


class TestDropout:
    """T = 72 positions that a block of 8 queries sees and N = 20 persistent vectors, in heads of 96: values that are
    unit vectors make the output show every weight."""

    batch, heads, block, span, memory, size, ramp = 2, 2, 8, 64, 20, 96, 8
    spans = (20.0, 64.0)

    def layer(self, dtype=torch.float32):
        draw = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

        n, length = (self.batch, self.heads), self.span + self.block
        return {
            "query": normal(*n, self.block, self.size), "key": normal(*n, length, self.size),
            "value": normal(*n, length, self.size), "positions": normal(self.size, self.span),
            "spans": torch.tensor(self.spans, dtype=dtype, requires_grad=True),
            "memory_key": normal(self.heads, self.size, self.memory),
            "memory_value": normal(self.heads, self.memory, self.size),
        }  # fmt: skip

    def attend(self, x, dropout, seed=0, bounds=(32, 64)):
        """(B, H, M, D)"""
        torch.manual_seed(seed)
        query = x["query"].transpose(1, 2) * self.size**-0.5
        context = Given(query, torch.stack([x["key"], x["value"]], dim=3).transpose(1, 2))
        memory = x["memory_key"], x["memory_value"]
        geometry = SpanGeometry(x["spans"], self.ramp, bounds)
        return fused.attend(context, x["positions"], geometry, dropout, memory).output.transpose(1, 2)

    def weights(self, dropout, seed=0, bounds=(32, 64)):
        """(B, H, M, T + N)"""
        length = self.span + self.block
        units = torch.eye(self.size)[: length + self.memory]
        x = self.layer()
        x["value"] = units[:length].expand(self.batch, self.heads, -1, -1)
        x["memory_value"] = units[length:].expand(self.heads, -1, -1)
        return self.attend(x, dropout, seed, bounds)[..., : length + self.memory].detach()

    def test_the_same_mask_forward_and_backward(self):
        got, x = self.layer(), self.layer(torch.float64)
        whole, dropped = self.weights(0.0), self.weights(0.3)
        torch.testing.assert_close(dropped[dropped > 0], (whole / 0.7)[dropped > 0])
        output = self.attend(got, 0.3)
        output.square().sum().backward()

        query = x["query"] * self.size**-0.5
        distance = self.span + torch.arange(self.block)[:, None] - torch.arange(self.span + self.block)  # (M, T)
        near = (query @ x["positions"]).gather(
            3, (self.span - distance).clamp(0, self.span - 1).expand(self.batch, self.heads, -1, -1)
        )
        height = (self.ramp + 1 + x["spans"][:, None, None] - distance) / self.ramp
        seen = (height >= 0) & (distance >= 1) & (distance <= self.span)
        log_mask = torch.where(seen, (height.clamp(0, 1) + 1e-20).log(), float("-inf"))
        scores = torch.cat([query @ x["key"].transpose(2, 3) + near + log_mask, query @ x["memory_key"]], dim=3)
        values = torch.cat([x["value"], x["memory_value"].expand(self.batch, -1, -1, -1)], dim=2)
        expected = (scores.softmax(3) * (dropped > 0) / 0.7) @ values
        expected.square().sum().backward()
        assert relative(output, expected) < 1e-5
        errors = {name: relative(got[name].grad, x[name].grad) for name in x}
        assert max(errors.values()) < 1e-5, errors

    def test_weights_are_dropped_at_that_rate_each_for_itself(self):
        whole = self.weights(0.0)
        seen = whole > 0
        first, second = (
            torch.stack([self.weights(0.3, seed) > 0 for seed in seeds]) for seeds in (range(4), range(4, 8))
        )
        count = seen.sum().item() * 4

        def rate(kept, where):
            return kept[where.expand_as(kept)].double().mean().item()

        for kept in (first, second):
            assert rate(kept, seen) == pytest.approx(0.7, abs=4 * (0.21 / count) ** 0.5)
        pairs = {"seeds": (first & second, seen)}
        for name, dim in (("rows", 1), ("heads", 2), ("queries", 3), ("positions", 4)):
            size = first.size(dim)
            pairs[name] = (
                first.narrow(dim, 0, size - 1) & first.narrow(dim, 1, size - 1),
                seen.narrow(dim - 1, 0, size - 1) & seen.narrow(dim - 1, 1, size - 1),
            )
        for name, (both, where) in pairs.items():
            error = 5 * (0.49 * 0.51 / where.sum().item() / 4) ** 0.5
            assert rate(both, where) == pytest.approx(0.49, abs=error), name

    def test_the_mask_depends_on_neither_tiles_nor_groups(self, monkeypatch):
        expected = self.weights(0.3)
        torch.testing.assert_close(self.weights(0.3, bounds=(64, 64)), expected)  # one group
        monkeypatch.setattr(fused, "TILES", alike(16, 64))
        torch.testing.assert_close(self.weights(0.3), expected)
        assert not torch.equal(self.weights(0.3, seed=1) > 0, expected > 0)


def test_where_it_cannot_run_auto_is_banded_and_says_why():
    assert chosen("auto", CPU, 64) == ("banded", "Triton only interprets its kernels here")
    assert chosen("auto", CPU, 256) == ("banded", "heads of 256 are larger than 128")
    assert chosen("fused", CPU, 128) == ("fused", "as asked for")
    assert chosen("banded", CPU, 256)[0] == "banded"
    with pytest.raises(UserError, match=r"^model.attention=fused cannot run here: heads of 256 are larger"):
        chosen("fused", CPU, 256)
    low = Given(torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16), None)
    with pytest.raises(UserError, match=r"Triton's interpreter computes in fp32 and fp16 alone"):
        choose("fused")(low, torch.zeros(64, 1), SpanGeometry(None, 1, [1]))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"get_device_capability": (7, 5)}, "GPU has compute capability 7.5, below 8.0"),
        ({"get_device_capability": (8, 0)}, None),
        ({"get_device_capability": (12, 0)}, None),
    ],
)
def test_which_gpus_it_runs_on(given, reason, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    for name, value in given.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    device = torch.device("cuda", 0)
    assert why_not_fused.__wrapped__(device, 64) == reason
    assert why_not_fused.__wrapped__(device, 64, torch.float16) == "torch.float16 is neither float32 nor bfloat16"
    assert why_not_fused.__wrapped__(CPU, 64) == "no GPU that Triton supports"


def test_hidden_scores_differ_by_nothing_where_a_gpu_rounds_once():
    """It computes s · log₂e − m in one instruction, which would leave what m, such a product itself, was rounded by."""
    log2e = np.float32(math.log2(math.e))
    assert float(np.float32(HIDDEN) * log2e) == HIDDEN * float(log2e)


def test_it_compiles_for_gpus_and_not_again_when_spans_change():
    """A part of all combinations: `python -m tests.compile_kernels` compiles any of them."""
    asked = ["80 bf16 64", "80 fp32 16", "90 bf16 96", "90 fp32 96", "90 tf32 96"]

    def run(words):
        command = [sys.executable, "-m", "tests.compile_kernels", *words.split()]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT)

    with ThreadPoolExecutor(2) as two:
        for words, result in zip(asked, two.map(run, asked), strict=True):
            assert result.returncode == 0, result.stderr
            *kernels, count = map(json.loads, result.stdout.splitlines())
            kinds = 12 if "bf16" in words else 8  # which has tiles for short spans
            assert count == {"before": kinds, "after": kinds}
            assert len(kernels) == kinds
            for kernel in kernels:
                assert kernel["stack"] <= STACK.get(words.split()[1], 256), kernel
                assert kernel["shared"] <= SHARED_MEMORY[int(words.split()[0])], kernel


@pytest.mark.gpu
class TestOnAGPU:
    """`python -m pytest -m gpu tests/unit/attention/test_fused.py`"""

    layers = (
        ({"batch": 2, "heads": 4, "head_size": 64, "block": 200, "past": 900, "max_span": 700, "ramp": 32, "seed": 0},
         [0.0, 31.0, 256.5, 700.0], 90),
        ({"batch": 2, "heads": 2, "head_size": 96, "block": 64, "past": 300, "max_span": 260, "ramp": 32, "seed": 0},
         None, 0),
        ({"batch": 1, "heads": 3, "head_size": 128, "block": 65, "past": 10, "max_span": 500, "ramp": 32, "seed": 0},
         [0.0, 64.0, 63.0], 0),
    )  # fmt: skip

    @pytest.mark.parametrize("layer", layers, ids=lambda layer: layer[0]["head_size"])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
    def test_it_computes_what_dense_does(self, layer, dtype, tolerance):
        expected = output_and_gradients("dense", layer, "cuda", torch.float64)
        errors = list(map(relative, output_and_gradients("fused", layer, "cuda", dtype), expected))
        assert max(errors) < tolerance, errors

    def attend(self, spans, bounds):
        """Forward and backward; the second time, when tables of the heads' order are there, without a look at the host.
        Returns the gradients."""
        batch, heads, block, size = 2, len(bounds), 128, 64
        draw, width = torch.Generator("cuda").manual_seed(0), heads * size

        def normal(*shape):
            return torch.randn(*shape, generator=draw, device="cuda", dtype=torch.bfloat16, requires_grad=True)

        past, hidden, positions = normal(batch, 512, width).detach(), normal(batch, block, width), normal(size, 512)
        weights = normal(width, width), normal(width, width), normal(width, width)
        leaves = [hidden, positions, *weights, spans.detach().requires_grad_()]

        def gradients():
            torch.manual_seed(0)
            context = HiddenStates(join(past, hidden, max(bounds)), hidden, weights, heads)
            output = fused.attend(context, positions, SpanGeometry(leaves[-1], 32, bounds), 0.3).output
            return torch.autograd.grad(output.sum(), leaves)

        gradients()
        with waiting.refused():
            return gradients()

    def test_it_never_waits_and_gives_the_same_bits_twice(self):
        spans = torch.tensor([0.0, 400, 90], device="cuda")
        found = [self.attend(spans, [64, 512, 128]) for _ in range(3)]
        for again in found[1:]:
            assert all(map(torch.equal, found[0], again))

    def test_nothing_is_compiled_again_while_spans_change(self):
        kernels = [getattr(fused.kernels, name) for name in ("forward_kernel", "query_kernel", "key_value_kernel")]
        compiled = []
        cases = ([0, 0, 200], [64, 64, 256]), ([0, 40.5, 300], [64, 128, 384]), ([400, 3, 3], [448, 64, 64])
        for spans, bounds in cases:
            self.attend(torch.tensor(spans, device="cuda", dtype=torch.float32), bounds)
            compiled.append([len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels])
        assert compiled[0] == compiled[1] == compiled[2]

    @pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
    def test_vectors(self, path):
        """With the weights and the texts of the original on the GPU."""
        vectors = on_the_gpu(torch.load(path, weights_only=True))
        model = parity.build(vectors["config"], vectors["state_dict"], "fused").cuda()
        errors, cache = parity.evaluate(model, vectors["config"], vectors)
        errors |= parity.gradients(model, vectors["config"], vectors, cache)
        assert {kind: error for kind, error in errors.items() if not error <= parity.TOLERANCES[kind]} == {}


def on_the_gpu(thing):
    if isinstance(thing, dict):
        return {key: on_the_gpu(value) for key, value in thing.items()}
    return thing.cuda() if isinstance(thing, torch.Tensor) else thing
