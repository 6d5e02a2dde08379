"""The moving average of the weights: what it is, where it begins, and with which bounds it is scored."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adaptive_span import load_model
from adaptive_span.data.corpus import prepare
from adaptive_span.distributed import Process
from adaptive_span.errors import UserError
from adaptive_span.evaluation import scoring
from adaptive_span.hardware import capacity
from adaptive_span.training import start
from adaptive_span.training.state import TrainState
from adaptive_span.training.trainer import Trainer
from adaptive_span.training.weight_average import average_in
from tests.conftest import SMALL
from tests.unit.config.test_config import composed
from tests.unit.training.test_start import checkpoint

HERE = Process(0, 1, torch.device("cpu"))
FILE = Path("x.pt")


@pytest.fixture(scope="module")
def training(text, tmp_path_factory):
    data = [f"data.path={text}", f"data.directory={tmp_path_factory.mktemp('data')}"]

    def state(*settings: str) -> TrainState:
        config = composed("data=files", *data, *SMALL, *settings)
        return TrainState(config, prepare(config.data), HERE)

    return state


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("freeze", [(), ("train.init_from=x.pt", "train.freeze=weights")], ids=["all", "spans"])
def test_the_average_is_that_of_the_weights_after_each_update(freeze, training):
    """Its decay grows from 2/11 and 3/12 to what was asked for."""
    averaged, plain = training("train.average=0.3", *freeze), training(*freeze)
    expected = {name: value.double() for name, value in plain.model.state_dict().items()}
    for decay in (2 / 11, 3 / 12, 0.3, 0.3):
        averaged.update()
        plain.update()
        weights = plain.model.state_dict()
        expected = {name: decay * value + (1 - decay) * weights[name].double() for name, value in expected.items()}
    assert equal(averaged.weights(), plain.weights())  # it does not change what is trained
    for name, tensor in averaged.averaged_weights().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-6)
    assert "average" not in plain.state_dict()


def test_it_begins_at_the_weights_that_a_run_starts_from_and_goes_on_with_a_continued_one(training):
    before = training("train.average=0.9")
    before.update()
    old = copy.deepcopy(checkpoint(before))
    assert not equal(old["average"], old["model"])
    fresh = training("train.average=0.9", "train.init_from=x.pt")
    start.begin(fresh, old)
    assert equal(fresh.averaged_weights(), old["model"])
    continued = training("train.average=0.9", "train.continue_from=x.pt")
    start.begin(continued, old)
    assert equal(continued.averaged_weights(), old["average"])
    del old["average"]
    with pytest.raises(UserError, match=r"=x\.pt holds no average.*train\.average=0\.9.*give.*train\.init_from=x\.pt"):
        start.begin(training("train.average=0.9", "train.continue_from=x.pt"), old)
    start.begin(training("train.continue_from=x.pt"), old)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("positions", torch.zeros(3), "x.pt does not fit this model: positions has shape (3,) there and (8, 96) here"),
        ("positions", torch.full((8, 96), torch.nan), "x.pt holds weights that are no numbers: positions is not fini"),
        ("more", torch.zeros(3), "x.pt does not fit this model: more has shape (3,) there and missing here"),
        ("positions", 1, "which is not dict[str, torch.Tensor]"),
        (None, None, "x.pt lacks the key 'average'"),
    ],
)
def test_a_strange_average_is_one_sentence(name, value, told, training):
    state = training("train.average=0.9")
    saved = state.state_dict()
    if name is None:
        del saved["average"]
    else:
        saved["average"] = saved["average"] | {name: value}
    with pytest.raises(UserError) as refused:
        average_in(saved, state.model, FILE)
    assert told in str(refused.value)


def test_an_average_whose_spans_are_longer_is_scored_with_bounds_of_its_own(training, tmp_path):
    """The weights' own spans have just become as short as spans can be."""
    config = training("train.average=0.9", "model.max_span=300", "model.span_init=0.8").config
    trainer = Trainer(config, prepare(config.data), HERE, tmp_path, [])
    trainer.checkpoints.mkdir()
    state = trainer.state
    for block in state.model.attention_blocks:
        block.attention.span.fraction.data.zero_()
    state.read_spans()
    losses = trainer._validate()
    model, _ = load_model(trainer.checkpoints / "best_average.pt")
    assert model.spans().min() > 200

    def bpc(bounds):
        rows, slices = trainer.validation_rows, config.train.batch_split
        blocks = config.validation.blocks
        return scoring.validate(model, rows, config.model.block_size, blocks, slices, bounds, HERE).bpc

    assert losses["valid_average/bpc"] == bpc(2 * [4 * [300]])
    assert losses["valid_average/bpc"] != bpc(state.span_bounds)
    assert np.max(state.span_bounds) < 200


def test_its_memory_is_counted(training):
    config = training().config
    averaged = replace(config, train=replace(config.train, average=0.9))
    assert capacity.copies(averaged) == capacity.copies(config) + 1
