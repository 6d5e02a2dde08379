"""Where a training starts from the weights of another one: with the same outputs, whatever learns then."""

import copy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptive_span import ModelConfig, Transformer
from adaptive_span.checkpoint.files import State
from adaptive_span.data.corpus import prepare
from adaptive_span.distributed import Process
from adaptive_span.errors import UserError
from adaptive_span.training import start
from adaptive_span.training.old_reach import with_old_reach
from adaptive_span.training.state import TrainState
from tests.conftest import SMALL
from tests.unit.config.test_config import composed
from tests.unit.model.test_model import small

FILE = Path("old.pt")


def model_with(config: ModelConfig, spans: Tensor | None = None) -> Transformer:
    """A model in double precision, with z of each head in tokens, (N, H)."""
    model = Transformer(config, 11).double().eval()
    for block, heads in zip(model.attention_blocks, [] if spans is None else spans, strict=spans is not None):
        block.attention.span.fraction.data = heads.double() / config.max_span
    return model


def stored(model: Transformer) -> State:
    return {"config": {"model": asdict(model.config)}, "vocab_size": 11, "model": model.state_dict()}


@torch.no_grad()
def predictions(model: Transformer) -> Tensor:
    """Of a text that is longer than any span."""
    text = torch.randint(11, (2, 120), generator=torch.Generator().manual_seed(0))
    cache, parts = model.empty_cache(2), []
    for block in text.split(40, 1):
        log_p, cache = model.log_probabilities(block, cache)
        parts.append(log_p)
    return torch.cat(parts, 1)


@settings(max_examples=60)
@given(
    st.integers(0, 1000), st.integers(2, 50), st.one_of(st.just(0), st.integers(1, 40)),
    st.one_of(st.just(1), st.integers(2, 20)), st.sampled_from(["fixed", "anywhere", "with room"]),
)  # fmt: skip
def test_outputs_are_the_same_before_the_first_step_or_it_is_refused(seed, longest, farther, ramp, kind):
    torch.manual_seed(seed)
    before = small(max_span=longest, adaptive_span=kind != "fixed", ramp=ramp)
    most = longest if kind == "anywhere" else max(0, longest - ramp)
    spans = None if kind == "fixed" else torch.rand(2, 3) * most
    old = model_with(before, spans)
    config = replace(before, max_span=longest + farther, adaptive_span=True)
    sees_all = kind == "fixed" or bool((spans > longest - ramp).any())
    if farther and ramp > 1 and sees_all:
        with pytest.raises(UserError, match=f"from {longest} to model[.]max_span={longest + farther} and"):
            with_old_reach(stored(old), config, FILE)
        return
    new = model_with(config)
    new.load_state_dict(with_old_reach(stored(old), config, FILE))
    torch.testing.assert_close(predictions(new), predictions(old), atol=1e-6, rtol=0)
    torch.testing.assert_close(new.spans(), old.spans().double(), atol=1e-5, rtol=0)  # as far as before


def test_what_has_no_longer_spans_is_left_as_it_is():
    old = stored(Transformer(small(), 11))
    for config in (small(ramp=9), small(max_span=60), small(adaptive_span=False)):
        assert with_old_reach(old, config, FILE) is old["model"]
    with pytest.raises(
        UserError, match=r"from 70 to model\.max_span=90 with another model\.ramp=9; give model\.ramp=5"
    ):
        with_old_reach(old, small(ramp=9, max_span=90), FILE)


@pytest.fixture(scope="module")
def corpus(text, tmp_path_factory):
    data = [f"data.path={text}", f"data.directory={tmp_path_factory.mktemp('data')}"]

    def state(*settings: str) -> TrainState:
        config = composed("data=files", *data, *SMALL, *settings)
        return TrainState(config, prepare(config.data), Process(0, 1, torch.device("cpu")))

    return state


def checkpoint(training: TrainState) -> State:
    config = training.config.as_dict()
    return {"config": config, "vocab_size": training.model.vocab_size, **training.state_dict()}


FROZEN = ["train.init_from=old.pt", "train.freeze=weights", "train.span_penalty=0.01", "model.max_span=40"]


@pytest.mark.parametrize(
    "settings", [(), ("train.batch_split=2", "model.dropout=0.1"), ("optimizer=adam", "optimizer.lr=0.01")], ids=str
)
def test_frozen_weights_stay_to_the_bit_while_spans_learn_and_a_resumed_training_is_the_same(settings, corpus):
    fixed = corpus("model.adaptive_span=false", "model.max_span=40")
    fixed.update()
    old = checkpoint(fixed)
    training, resumed = corpus(*FROZEN, *settings), corpus(*FROZEN, *settings)
    start.begin(training, old)
    assert (training.model.span_penalty() == 2 * 40).all()
    for _ in range(6):
        training.update()
    middle = copy.deepcopy(checkpoint(training))
    for _ in range(3):
        training.update()
    assert training.model.span_penalty() < 2 * 39  # each head's mask has begun to fall
    weights = {name: value for name, value in training.model.state_dict().items() if "span" not in name}
    assert all(torch.equal(value, old["model"][name]) for name, value in weights.items())
    assert all(p.grad is None for p in training.model.parameters() if not p.requires_grad)
    assert len(middle["optimizer"]["state"]) == len(training.model.attention_blocks)
    resumed.load_state_dict(middle)
    for _ in range(3):
        resumed.update()
    assert all(map(torch.equal, resumed.model.state_dict().values(), training.model.state_dict().values()))


def test_the_state_of_another_optimizer_is_not_taken_over(corpus):
    old = checkpoint(corpus())
    training = corpus("train.continue_from=old.pt", "train.freeze=weights")
    with pytest.raises(
        UserError, match=r"trained with train\.freeze=none, whose optimizer's state train\.freeze=weights"
    ):
        start.begin(training, old)
