"""A figure shows what it is given; that of the growth of spans is drawn in tests/unit/benchmark/test_benchmark.py."""

from adaptive_span.reporting import figures


def test_every_head_has_a_bar(tmp_path):
    drawn = []
    for spans in ([[32.0, 40.0], [32.0, 500.0]], [[32.0, 40.0], [32.0, 400.0]], [[40.0, 32.0], [32.0, 400.0]]):
        figures.draw_spans(spans, 1024, tmp_path / "figures" / "spans.png")
        drawn.append((tmp_path / "figures" / "spans.png").read_bytes())
    assert drawn[0] != drawn[1] == drawn[2]  # sorted within a layer
    assert drawn[0].startswith(b"\x89PNG")
