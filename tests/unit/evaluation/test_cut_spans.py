"""A score with spans cut is that of a model whose heads look no farther, and stands beside the others."""

from dataclasses import replace

import pytest
import torch

from adaptive_span import ModelConfig, Transformer
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.evaluate_schema import EvaluateConfig
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.errors import UserError
from adaptive_span.evaluation.evaluate import evaluate
from adaptive_span.model.cut_spans import with_spans_cut
from adaptive_span.reporting import scores

RAMP, LONGEST = 8, 40


def losses(model, tokens):
    return model.eval()(tokens[:, :-1], tokens[:, 1:], model.empty_cache(1))[0]


@pytest.fixture
def tokens():
    return torch.randint(11, (1, 90), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    """Spans of 8, 20 and 40 tokens, the last by z = L: cut by the maximum alone."""
    torch.manual_seed(3)
    model = Transformer(ModelConfig("test", 2, 12, 16, 3, LONGEST, block_size=8, ramp=RAMP), 11)
    for block in model.attention_blocks:
        block.attention.span.fraction.data = torch.tensor([0.0, 12 / LONGEST, 1.0])
    return model


@torch.no_grad()
def test_a_cut_is_a_clamp_of_the_spans_and_leaves_the_model_alone(model, tokens):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    whole = losses(model, tokens)
    assert torch.equal(losses(with_spans_cut(model, LONGEST), tokens), whole)
    cut = with_spans_cut(model, 20)
    assert cut.spans().tolist() == [[8.0, 20.0, 20.0]] * 2
    below_the_ramp = with_spans_cut(model, 3)
    assert below_the_ramp.spans().tolist() == [[3.0, 3.0, 3.0]] * 2
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    for most, other in ((20, cut), (3, below_the_ramp)):
        for block in model.attention_blocks:
            block.attention.span.fraction.data.clamp_(max=(most - RAMP) / LONGEST)
        assert torch.equal(losses(other, tokens), losses(model, tokens))
        assert not torch.equal(losses(other, tokens), whole)


@torch.no_grad()
@pytest.mark.parametrize("adaptive", [True, False])
def test_nothing_beyond_a_cut_reaches_a_loss(adaptive, tokens):
    """Two layers of 5 tokens see 10 back, and of those no token more, nor one less."""
    torch.manual_seed(3)
    config = ModelConfig("test", 2, 12, 16, 3, LONGEST, 8, adaptive_span=adaptive, ramp=RAMP, span_init=1.0)
    model = with_spans_cut(Transformer(config, 11), 5)
    changed = tokens.clone()
    changed[0, 30] = (changed[0, 30] + 1) % 11
    differs = (losses(model, tokens) != losses(model, changed))[0]  # at t: that of predicting token t + 1
    assert differs[30:41].tolist() == [True] * 11
    assert not differs[41:].any()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["banded", "fused"])
def test_every_attention_cuts_alike_also_below_the_ramp(attention, model, tokens):
    """There z is negative, as it never is in a training."""
    other = Transformer(replace(model.config, attention=attention), 11)
    other.load_state_dict(model.state_dict())
    model = Transformer(replace(model.config, attention="dense"), 11)
    model.load_state_dict(other.state_dict())
    for most in (1, 3, 20):
        expected, found = (losses(with_spans_cut(each, most), tokens) for each in (model, other))
        torch.testing.assert_close(found, expected)


def test_every_score_is_kept_under_its_name(launch, tmp_path, capsys):
    launch("run.dir=run", "model.span_init=0.5", "train.steps=12")
    run = tmp_path / "run"
    own, picture = scores.read(run), (run / "figures" / "spans.png").read_bytes()

    def score(**asked):
        asked = EvaluateConfig(run=str(run), data=DataConfig(name=""), hardware=HardwareConfig(device="cpu"), **asked)
        asked.validate()
        evaluate(asked)

    with pytest.raises(UserError, match="max_span=0 must be at least 1"):
        score(max_span=[40, 0])
    with pytest.raises(UserError, match=r"max_span=97 is beyond the 96 tokens that a head of .* may look at"):
        score(max_span=[40, 97])
    assert scores.read(run) == own
    for asked in ({"max_span": [96, 40, 40]}, {"protocol": "published", "batch_size": 2}, {"max_span": [40]}):
        capsys.readouterr()
        score(**asked)
    out = capsys.readouterr().out
    after = scores.read(run)
    others = after.pop("others")
    assert after == own
    assert (run / "figures" / "spans.png").read_bytes() == picture
    assert len({path.name for path in (run / "figures").iterdir()}) == 1 + len(others)
    by_kind = {name.partition(", ")[2]: score for name, score in others.items()}
    assert by_kind.keys() == {"max_span 96", "max_span 40", "published"}
    assert by_kind["max_span 96"]["splits"] == own["splits"]
    assert by_kind["max_span 40"]["splits"] != own["splits"]
    assert max(max(heads) for heads in by_kind["max_span 40"]["spans"]) == 40
    for kept in (own, *others.values()):
        assert f"{kept['splits']['test']['bpc']:.4f}" in out
