"""Optimizers with groups of their own, and schedules of the rate: what they do, and that a run resumes with them."""

from itertools import pairwise

import pytest
import torch
from torch.optim import AdamW, Muon

from adaptive_span import ModelConfig, Transformer
from adaptive_span.config.identity import changes, default_run_dir
from adaptive_span.config.optimizer_schema import OptimizerConfig
from adaptive_span.config.train_schema import TrainConfig
from adaptive_span.training import optimizer as optimizers
from adaptive_span.training.schedule import learning_rate
from tests.unit.config.test_config import composed
from tests.unit.training.test_training import small

ADAMW = OptimizerConfig("adamw", 0.01, 1.0, betas=[0.9, 0.95], weight_decay=0.5, span_lr=0.002)
MUON = OptimizerConfig("muon", 0.02, 1.0, momentum=0.9, betas=[0.9, 0.95], weight_decay=0.1, adamw_lr=0.004)
FALLS = ("linear", "cosine", "warmup_stable_decay")


def model():
    torch.manual_seed(0)
    config = ModelConfig(
        "tiny", num_layers=2, hidden_size=16, ffn_size=32, num_heads=2, max_span=64, block_size=8, span_init=0.5
    )
    return Transformer(config, 9)


def with_gradients(made):
    for parameter in made.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


@pytest.mark.parametrize("schedule", FALLS)
def test_a_schedule_rises_then_falls_to_its_final_rate_in_the_last_step(schedule):
    train = TrainConfig(steps=100, warmup_steps=10, schedule=schedule, final_rate=0.1)
    rates = [learning_rate(step, 2.0, train) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    if schedule == "warmup_stable_decay":
        assert rates[9:80] == [2.0] * 71
        assert rates[89] == pytest.approx(1.1)
    else:
        assert rates[54] == pytest.approx(1.1)  # half of the way


def test_the_inverse_root_does_not_know_the_end():
    train = TrainConfig(steps=100, warmup_steps=25, schedule="inverse_sqrt")
    assert [learning_rate(step, 2.0, train) for step in (5, 25, 100, 400)] == pytest.approx([0.4, 2.0, 1.0, 0.5])


def test_more_steps_are_the_same_run_unless_the_rate_falls_to_the_last():
    for schedule, same in (("constant", True), ("inverse_sqrt", True), *((name, False) for name in FALLS)):
        one, more = (composed("train.steps=200", f"train.steps={n}", f"train.schedule={schedule}") for n in (200, 300))
        assert (default_run_dir(one) == default_run_dir(more)) == same
        assert bool(changes(one.as_dict(), more)) != same


def test_adamw_shrinks_matrices_alone_and_gives_spans_a_rate_of_their_own():
    made, still = with_gradients(model()), dict(model().named_parameters())
    made.zero_grad(set_to_none=False)
    optimizer = optimizers.build(ADAMW, made.named_parameters())
    optimizers.set_rate(optimizer, 0.01)
    optimizers.update(optimizer, ADAMW, made.parameters())
    shrunk = {name for name, parameter in made.named_parameters() if not torch.equal(parameter, still[name])}
    assert shrunk == {name for name in still if name.endswith(("key.weight", "query.weight", "value.weight"))} | {
        name for name in still if ".attention.output.weight" in name or "expand.weight" in name or "contract.w" in name
    }
    spans = [parameter for name, parameter in with_gradients(made).named_parameters() if "span" in name]
    before = [span.detach().clone() for span in spans]
    optimizers.update(optimizer, ADAMW, made.parameters())
    moved = torch.stack([(span - was).abs() for span, was in zip(spans, before, strict=True)])
    assert 0 < moved.max() <= 0.002 * 1.5  # by no more than about its rate, whatever the gradient


def test_muon_is_muon_for_matrices_and_adamw_for_the_rest():
    made, expected = with_gradients(model()), with_gradients(model())
    optimizer = optimizers.build(MUON, made.named_parameters())
    hidden = [p for n, p in expected.named_parameters() if "_blocks" in n and p.dim() == 2]
    others = [p for n, p in expected.named_parameters() if not ("_blocks" in n and p.dim() == 2)]
    parts = Muon(hidden, lr=0.01, momentum=0.9, weight_decay=0.1), AdamW(others, 0.002, (0.9, 0.95), weight_decay=0)
    optimizers.set_rate(optimizer, 0.01)
    for _ in range(3):
        optimizer.step()
        for part in parts:
            part.step()
    for (name, got), (_, right) in zip(made.named_parameters(), expected.named_parameters(), strict=True):
        is_matrix = "_blocks" in name and right.dim() == 2  # together, whose products in bf16 round otherwise
        torch.testing.assert_close(got, right, rtol=0, atol=1e-4 if is_matrix else 0, msg=name)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_a_step_of_muon_is_about_orthogonal_and_as_large_in_every_direction(shape):
    from adaptive_span.training.muon import orthogonal

    matrices = (
        torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-6, 1, 1e6])[:, None, None]
    )
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.5
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert (
        (found.float() * (left @ right)).sum((1, 2)) / found.float().norm(dim=(1, 2)) / min(shape) ** 0.5 > 0.95
    ).all()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_resumed_run_is_the_uninterrupted_one(name, text, tmp_path):
    settings = f"optimizer={name} train.schedule=cosine train.steps=24 train.finetune_steps=0".split()
    whole, half, rest = (small(text, tmp_path, *settings) for _ in range(3))
    for _ in range(12):
        whole.update(), half.update()
    rest.load_state_dict(half.state_dict())
    for _ in range(12):
        whole.update(), rest.update()
    one, other = whole.state_dict(), rest.state_dict()
    for kind in ("model", "cache"):
        torch.testing.assert_close(one[kind], other[kind], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer"]["state"], other["optimizer"]["state"], rtol=0, atol=0)
    assert whole.spans != small(text, tmp_path, *settings).spans  # they learn
