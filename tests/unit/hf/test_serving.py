"""What other software gets of the spans shows and keeps the same as the model with hard windows."""

import json

import pytest
import torch
from transformers import Gemma3TextConfig, GPT2Config

from adaptive_span.errors import UserError
from adaptive_span.hf.learned import HeadSpans
from adaptive_span.hf.serving import flex_block_mask, head_table, layer_windows
from adaptive_span.hf.spans import FittedSpans, LayerSpans

CONTEXT, SINKS, LENGTH = 256, 4, 300
LAYERS = [
    LayerSpans(0, 2, 8, None, [20.0, 30.5, 12, 12]),
    LayerSpans(1, 2, 8, None, [20.0, 10, CONTEXT, 40]),
    LayerSpans(2, 2, 8, None, [70.0, 10, 10, 10]),
]
FITTED = FittedSpans("tiny", None, "X", "f", CONTEXT, 8, SINKS, LAYERS)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_block_mask_shows_what_hard_windows_do(layer: int) -> None:
    spans = HeadSpans(4, CONTEXT, 8, SINKS)
    spans.set_(LAYERS[layer].spans)
    spans.harden_()
    places = torch.arange(LENGTH)
    distances = places[:, None] - places
    seen = (spans.log_mask(distances.clamp(min=1)) == 0) | (distances == 0) | (places < SINKS)
    seen &= distances >= 0  # (H, M, M)
    mask = flex_block_mask(FITTED, layer, LENGTH)
    dense = torch.stack([mask.mask_mod(torch.tensor(0), torch.tensor(h), places[:, None], places) for h in range(4)])
    assert torch.equal(dense, seen)
    blocks = torch.nn.functional.pad(seen, (0, 84, 0, 84)).unflatten(1, (3, 128)).unflatten(3, (3, 128)).any(4).any(2)
    assert torch.equal(mask.to_dense()[0].bool(), blocks)


def test_the_block_mask_wants_a_layer_that_there_is() -> None:
    with pytest.raises(UserError, match="layer=7 has no spans; these have layers 0, 1, 2"):
        flex_block_mask(FITTED, 7, LENGTH)


def test_the_table_holds_the_longest_of_each_key_value_head() -> None:
    table = json.loads(json.dumps(head_table(FITTED)))
    assert [layer["kept"] for layer in table["layers"]] == [[31, 12], [20, None], [70, 10]]
    assert table["layers"][0]["window"] == [20, 31, 12, 12]
    assert table["layers"][0]["sinks"] == SINKS


def test_one_window_serves_the_layers_that_it_suffices_for() -> None:
    windows = layer_windows(FITTED, Gemma3TextConfig(num_hidden_layers=3))
    assert windows.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows.sliding_window == 71
    assert windows.share == pytest.approx((71 + 256 + 71) / (3 * 256))
    assert windows.share_per_head == FITTED.share() < windows.share
    with pytest.raises(UserError, match="GPT2Config has no layer_types and sliding_window"):
        layer_windows(FITTED, GPT2Config())
