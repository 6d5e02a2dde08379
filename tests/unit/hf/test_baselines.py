"""Windows by hand with the cache of fitted spans."""

from hypothesis import given
from hypothesis import strategies as st

from adaptive_span.hf import baselines
from adaptive_span.hf.learned import HeadSpans
from adaptive_span.hf.spans import FittedSpans, LayerSpans

CONTEXT, RAMP, SINKS = 300, 32, 4
SPANS = st.floats(RAMP, CONTEXT) | st.just(float(CONTEXT)) | st.just(float(RAMP))


@st.composite
def fits(draw):
    """Layers of two key/value heads with two query heads each; some are sliding ones, but not all."""
    windows = draw(st.lists(st.none() | st.just(64), min_size=1, max_size=6).filter(lambda drawn: None in drawn))
    layers = [
        LayerSpans(n, 2, 8, window, [64.0] * 4 if window else draw(st.lists(SPANS, min_size=4, max_size=4)))
        for n, window in enumerate(windows)
    ]
    return FittedSpans("a model", None, "Kind", "0", CONTEXT, RAMP, SINKS, layers)


def kept(fitted: FittedSpans) -> list[list[int]]:
    return [layer.kept(CONTEXT, CONTEXT, SINKS) for layer in fitted.layers]


@given(fits())
def test_baselines_keep_what_the_spans_keep_within_a_token_per_head(fitted):
    one, by_layer = baselines.one_window(fitted), baselines.window_per_layer(fitted)
    assert abs(one.share() - fitted.share()) <= 1 / CONTEXT
    for mine, fit in zip(kept(by_layer), kept(fitted), strict=True):
        assert abs(sum(mine) - sum(fit)) <= len(fit)  # each layer as much as it has, within a token per head
    for each in (one, by_layer):
        own = [layer for layer in each.layers if layer.window is not None]
        assert own == [layer for layer in fitted.layers if layer.window is not None]
        assert all(len(set(layer.spans)) == 1 for layer in each.layers)
    assert len({layer.spans[0] for layer in one.layers if layer.window is None}) == 1


def test_what_sees_the_whole_context_still_does():
    layers = [LayerSpans(0, 1, 8, None, [300.0]), LayerSpans(1, 1, 8, None, [36.0])]
    fitted = FittedSpans("a model", None, "Kind", "0", CONTEXT, RAMP, SINKS, layers)
    assert baselines.window_per_layer(fitted).layers == layers
    assert [layer.spans for layer in baselines.one_window(fitted).layers] == [[166.0], [166.0]]


def test_a_window_is_as_long_as_it_says_whatever_the_context():
    spans = HeadSpans(CONTEXT - RAMP, CONTEXT, RAMP, SINKS)
    spans.set_(range(RAMP, CONTEXT))
    spans.harden_()
    assert spans.windows.tolist() == list(range(RAMP, CONTEXT))
