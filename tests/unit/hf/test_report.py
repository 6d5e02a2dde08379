"""What tables and figures of a fit show is read off their objects."""

from dataclasses import replace

import pytest

from adaptive_span.cli.figures import main
from adaptive_span.errors import UserError
from adaptive_span.hf import report
from adaptive_span.hf.spans import FittedSpans, LayerSpans

LAYERS = [
    LayerSpans(0, 2, 64, None, [40.0, 100.0, 36.0, 1024.0]),
    LayerSpans(1, 2, 64, 512, [512.0] * 4),
    LayerSpans(2, 2, 64, None, [60.0, 36.0, 50.5, 36.0]),
]
FITTED = FittedSpans("models/some-llama", None, "Kind", "0", 1024, 32, 4, LAYERS)
NUMBER = 2 * 64 * 2  # bytes of a token in a key/value head, at two bytes a number


def cells(table):
    return [list(column.cells) for column in table.columns]


def test_the_cache_of_a_text_is_what_each_head_keeps_of_it():
    full, by_layer, by_head = report.cache_sizes(FITTED, 4096, 2)
    assert full == NUMBER * (4096 * 2 + 512 * 2 + 4096 * 2)
    assert by_layer == NUMBER * (4096 * 2 + 512 * 2 + 64 * 2)
    assert by_head == NUMBER * (104 + 4096 + 512 * 2 + 64 + 55)


def test_the_table_goes_to_the_longest_text_of_the_model():
    tokens, full, _, by_head, share = cells(report.cache_table(FITTED, 8192))
    assert tokens == ["1,024", "4,096", "8,192"]
    assert full[1] == f"{NUMBER * 17408 / 1e6:.1f}"
    assert by_head[1] == f"{NUMBER * 5343 / 1e6:.1f}"
    assert share[1] == "30.7%"
    assert report.lengths(16384) == [1024, 4096, 16384]
    assert report.lengths(1024) == [1024]
    assert report.lengths(200) == [200]


def test_the_loss_is_told_for_all_and_for_each_quarter():
    before = {"nats_per_token": 2.5, "by_quarter": [3.0, 2.5, 2.25, 2.25], "tokens": 20460}
    after = {"nats_per_token": 2.55, "by_quarter": [2.9999, 2.5, 2.3, 2.4], "tokens": 20460}
    table = report.loss_table(before, after)
    names, was, now, more = cells(table)
    assert "20,460 held-out tokens" in table.title
    assert (names[0], was[0], now[0], more[0]) == ("all", "2.500", "2.550", "+0.050")
    assert more[1] == "+0.000"
    assert (names[4], was[4], now[4], more[4]) == ("last quarter", "2.250", "2.400", "+0.150")


def test_the_heat_map_shows_every_layer_also_sliding_ones_and_layers_of_fewer_heads(tmp_path):
    fewer = LayerSpans(3, 1, 64, None, [70.0, 90.0])
    fitted = FittedSpans("some-llama", None, "Kind", "0", 1024, 32, 4, [*LAYERS, fewer])
    assert report.save_heat_map(fitted, tmp_path) == tmp_path / "spans.png"
    assert (tmp_path / "spans.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "spans.svg").read_text()


def test_the_curve_of_loss_against_cache_has_a_line_for_each_way_and_one_for_full_attention():
    learned = [(0.5, 2.9), (0.2, 2.95), (0.1, 3.1)]
    figure = report.pareto(learned, {"one window for all heads": [(0.5, 2.95), (0.2, 3.2)]}, 2.88, "a title")
    [axes] = figure.axes
    mine, other, full = axes.get_lines()
    assert list(zip(*mine.get_data(), strict=True)) == sorted(learned)
    assert other.get_label() == "one window for all heads"
    assert list(full.get_ydata()) == [2.88, 2.88]
    figure.draw_without_rendering()
    assert axes.get_xticklabels()[0].get_text() == "0%"
    assert axes.get_xlim()[0] == 0


def measured(share: float, nats: float, data: str = "wikitext2", **other: object) -> FittedSpans:
    """A fit with what `adaptive-span fit` has measured of it."""
    record = {
        "asked": {"data": {"name": data, "file": None, "path": None}, "held_out": 20_000},
        "share": share,
        "before": {"loss": {"nats_per_token": 2.8}},
        "after": {"loss": {"nats_per_token": nats}},
        "baselines": {
            name: {"share": share, "loss": {"nats_per_token": nats + 0.1}}
            for name in ("one_window", "window_per_layer")
        },
    }
    return replace(FITTED, fit=record | other)


def test_the_command_draws_the_curve_of_several_fits(tmp_path, capsys):
    files = [tmp_path / name / "spans.json" for name in ("a", "b")]
    for file, fit in zip(files, (measured(0.2, 2.84), measured(0.4, 2.81)), strict=True):
        file.parent.mkdir()
        fit.save(file)
    main([*map(str, files), "--format", "png,svg"])
    assert capsys.readouterr().out.split() == [str(tmp_path / "a" / f"pareto.{ending}") for ending in ("png", "svg")]
    assert (tmp_path / "a" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    [axes] = report.compare([measured(0.2, 2.84), measured(0.4, 2.81)]).axes
    learned, one, by_layer, full = axes.get_lines()
    assert list(zip(*learned.get_data(), strict=True)) == [(0.2, 2.84), (0.4, 2.81)]
    assert list(zip(*by_layer.get_data(), strict=True)) == [(0.2, pytest.approx(2.94)), (0.4, pytest.approx(2.91))]
    assert (one.get_label(), full.get_ydata()[0]) == ("one window for all heads", 2.8)


def test_fits_that_were_not_measured_alike_are_not_compared():
    with pytest.raises(UserError, match="were not measured on the same text"):
        report.compare([measured(0.2, 2.84), measured(0.4, 2.81, "text8")])
    with pytest.raises(UserError, match="hold no measurements"):
        report.compare([measured(0.2, 2.84, baselines={})])
