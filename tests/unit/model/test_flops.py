"""The count of operations, against PyTorch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.model import flops
from adaptive_span.model.transformer import Transformer
from tests.unit.model.test_model import small, with_spans


@pytest.mark.parametrize("changes", [{}, {"ffn_size": 0, "memory_size": 7}, {"cutoffs": [4], "division": 2}])
def test_dense_attention_computes_what_is_counted_and_its_padding(changes):
    """Dense attention looks as far as a layer's longest head and multiplies each query by the keys of its whole block:
    M of the S + M columns of scores, and M − 1 of values, are cut off."""
    config = small(attention="dense", max_span=512, **changes)
    model = with_spans(Transformer(config, 11), 3)
    text = torch.zeros(1, config.block_size + 1, dtype=torch.long)  # of the first cluster
    bounds = model.span_bounds()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(text[:, :-1], text[:, 1:], model.empty_inference_cache(), bounds)
    counted = flops.comparison(config, 11, bounds)["longest_head_of_each_layer"]
    padding = 2 * config.num_layers * config.hidden_size * (2 * config.block_size - 1)
    assert counter.get_total_flops() / config.block_size == counted + padding


def test_the_cost_follows_each_head():
    config = ModelConfig("test", 2, 64, 128, 4, 1024, 16)
    spans = [[32.5, 40.0, 100.0, 900.0], [33.0] * 4]
    costs = flops.comparison(config, 256, spans)
    base = 2 * (2 * (4 * 64 * 64 + 2 * 64 * 128) + 64 * 256)
    assert costs["learned_spans"] == base + 6 * 16 * sum(map(sum, spans))
    assert costs["longest_head_of_each_layer"] == base + 6 * 16 * 4 * 933
    frozen = flops.training(flops.forward(config, 256, spans), is_frozen=True)
    assert frozen == 2 * base + (3 + 2 + 3) * 2 * 16 * sum(map(sum, spans))  # scores, positions, values
    assert costs["maximum_span"] == base + 6 * 16 * 4 * 2 * 1024
