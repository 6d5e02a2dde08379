"""What figures show is read off matplotlib's objects; that of the growth of spans is in unit/benchmark."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adaptive_span.cli.figures import main
from adaptive_span.errors import UserError
from adaptive_span.reporting import figures, run_figures, run_record
from adaptive_span.reporting.figure_style import doubling_ticks, log_ticks, plain, save_figure
from tests.integration.test_strangers import CONFIG


def write_run(directory: Path, losses: list[float], spans: list[float] | None = None, **model: object) -> Path:
    """A run of two heads in one layer, with its metrics."""
    directory.mkdir(parents=True)
    config = CONFIG.as_dict()
    config["model"] |= model
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {"step": 10 * (index + 1), "valid/bpc": loss, "flops_per_token": 1e6 * loss, "tokens_per_second": 5.0}
        | ({"spans": [[32.0, spans[index]]]} if spans else {})
        for index, loss in enumerate(losses)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_a_heat_map_keeps_each_head_in_its_place_and_names_the_far_ones():
    figure = figures.heat_map([[32.0, 900.4], [64.0, 40.0], [33.0, 1024.0]], 1024, 32, "a title")
    axes, bar = figure.axes
    assert axes.images[0].get_array().tolist() == [[32.0, 900.4], [64.0, 40.0], [33.0, 1024.0]]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((1, 0), "900"),
        ((0, 1), "64"),
        ((1, 2), "1,024"),
    }
    figure.draw_without_rendering()
    assert [label.get_text() for label in bar.get_yticklabels()] == ["32", "64", "128", "256", "512", "1,024"]
    assert figure.get_suptitle() == "a title"


def test_a_name_is_no_formula_and_may_hold_signs_that_the_font_lacks(tmp_path):
    save_figure(figures.heat_map([[32.0, 900.4]], 1024, 32, "a $x_{$ 日本"), tmp_path / "spans.png")
    assert (tmp_path / "spans.png").read_bytes().startswith(b"\x89PNG")


def test_evolution_has_a_panel_per_layer_and_a_line_per_head_between_ramp_and_maximum():
    over_time = [(step, [[32.0, 32.0 + step], [40.0, 50.0], [33.0, 32.0]]) for step in (0, 100, 900)]
    figure = figures.evolution(over_time, 1024, 32, "")
    assert [axes.get_title("left") for axes in figure.axes] == ["layer 0", "layer 1", "layer 2"]
    lines = figure.axes[0].get_lines()
    assert list(lines[1].get_xdata()) == [0, 100, 900]
    assert list(lines[1].get_ydata()) == [32.0, 132.0, 932.0]
    assert [line.get_ydata()[0] for line in lines[2:]] == [32, 1024]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1"]  # the head that looks far


def test_several_runs_are_named_by_what_they_differ_in_the_best_first(tmp_path):
    runs = [write_run(tmp_path / str(size), [5.0, loss], max_span=size) for size, loss in ((64, 3.0), (256, 2.0))]
    records = [run_record.read(run) for run in runs]
    figure = run_figures.cost(records)
    assert figure.get_suptitle().endswith("the best has 2.000 bpc on valid after 20 steps")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["max_span=256", "max_span=64"]
    flops, span = ([tuple(line.get_xydata()[0]) for line in axes.get_lines()] for axes in figure.axes)
    assert (flops, span) == ([(2.0, 2.0), (3.0, 3.0)], [(256.0, 2.0), (64.0, 3.0)])
    valid = [line.get_ydata()[-1] for line in run_figures.curves(records).axes[0].get_lines()]
    assert valid == [2.0, 3.0]


def test_of_forty_runs_twelve_are_named(tmp_path):
    records = [run_record.read(write_run(tmp_path / f"{n:02}", [9.0, 2 + n / 10], max_span=64 + n)) for n in range(40)]
    legend = run_figures.curves(records).legends[0]
    assert legend.get_title().get_text() == "the best 12 of 40"
    assert [text.get_text() for text in legend.get_texts()] == [f"max_span={64 + n}" for n in range(12)]


def test_the_command_draws_runs_and_a_checkpoint_in_each_format(tmp_path, capsys):
    for name in "ab":
        write_run(tmp_path / "runs" / name, [4.0, 3.0], [40.0, 60.0], max_span=64)
    write_run(tmp_path / "old", [4.0])
    main([str(tmp_path / "runs"), "--format", "png,svg,pdf"])
    drawn = {
        path.relative_to(tmp_path / "runs")
        for path in tmp_path.glob("runs/**/*")
        if path.suffix in (".png", ".svg", ".pdf")
    }
    names = [f"{run}/figures/{name}" for run in "ab" for name in ("spans", "evolution")] + [
        "figures/curves",
        "figures/cost",
    ]
    assert drawn == {Path(f"{name}.{ending}") for name in names for ending in ("png", "svg", "pdf")}
    assert (tmp_path / "runs" / "a" / "figures" / "spans.svg").read_text().startswith("<?xml")
    for argument, problem in {
        str(tmp_path / "old"): "has no spans to draw yet",
        str(tmp_path / "nowhere"): "is no checkpoint, and no run that has begun is in it",
    }.items():
        with pytest.raises(UserError, match=problem):
            main([argument])
    with pytest.raises(UserError, match=r"--format=gif is none of png, svg, pdf"):
        main([str(tmp_path / "runs"), "--format", "gif"])


@given(st.floats(0.01, 1e6), st.floats(1.5, 1e6))
def test_ticks_lie_in_their_range_and_are_few_and_plain(low, factor):
    for ticks in (doubling_ticks(low, low * factor), log_ticks(low, low * factor)):
        assert ticks == sorted(set(ticks))
        assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)
        assert len(ticks) <= 10
        assert not any("e" in plain(tick) for tick in ticks)
