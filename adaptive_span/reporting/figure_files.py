"""Decide which figures there are of runs and checkpoints, what stands above them, and where they are written."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from adaptive_span.checkpoint.paths import is_exported
from adaptive_span.errors import UserError
from adaptive_span.reporting import figures, run_figures, run_record, units
from adaptive_span.reporting.figure_style import save_figure
from adaptive_span.reporting.run_directory import refuse_links
from adaptive_span.reporting.run_record import RunRecord
from adaptive_span.reporting.tracking import Spans

FOLDER = "figures"
Named = tuple[Path, Figure]  # the path without its ending


def draw(sources: Sequence[Path], formats: Sequence[str], out: Path | None = None) -> Iterator[Path]:
    """Draw all figures of runs and checkpoints, and yield each file once it is written.

    Args:
        sources: Directories of runs, folders of such, checkpoints, also published ones, or exported folders.
        formats: png, svg, pdf: one or several.
        out: The folder to write to; each run's own where it is None.

    Raises:
        UserError: A source is none of these, or has nothing to draw.
    """
    models = [source for source in sources if source.is_file() or is_exported(source)]
    directories = [each for source in sources if source not in models for each in _runs(source)]
    records = [run_record.read(directory) for directory in directories]
    one_folder = out or (records[0].directory.parent / FOLDER if len(records) > 1 else None)
    named: list[Named] = []
    for record in records:
        refuse_links(record.directory)
        folder = out / record.directory.name if out and len(records) > 1 else out or record.directory / FOLDER
        named += _of_run(record, folder)
    for source in models:
        name = source.stem if source.is_file() else source.name
        named.append(((out or source.parent) / f"{name}-spans", of_checkpoint(source)))
    if one_folder and len(records) > 1:
        named += [
            (one_folder / "curves", run_figures.curves(records)),
            (one_folder / "cost", run_figures.cost(records)),
        ]
    if not named:
        raise UserError(f"{sources[0]} has no spans to draw yet: it has logged none")
    for path, figure in named:
        for ending in formats:
            file = path.with_name(f"{path.name}.{ending}")
            save_figure(figure, file)
            yield file


def heading(name: str, spans: Spans, max_span: int, step: int | None = None, score: str = "") -> str:
    """Return what stands above the spans of a model, so that the figure is understood alone.

    Args:
        name: Of the run or the file.
        spans: Effective span of every head, in tokens, (N, H).
        max_span: The longest span allowed, in tokens.
        step: Of the weights.
        score: Such as '2.107 bpc on valid'.
    """
    heads = [span for layer in spans for span in layer]
    mean = sum(heads) / len(heads)
    first = [name, f"after {step:,} steps" if step else "", score]
    share = f"{100 * mean / max_span:.2g} % of the maximum, {max_span:,}"
    return f"{' · '.join(filter(None, first))}\nmean span {mean:.0f} tokens, {share} · longest {max(heads):,.0f}"


def of_checkpoint(file: Path) -> Figure:
    """Draw the spans of a checkpoint, also of a published one, or of an exported folder."""
    import torch

    from adaptive_span.checkpoint import loading
    from adaptive_span.checkpoint.stored_model import model_of

    state = loading.load(file)
    model = model_of(state, file, torch.device("cpu"))
    spans, config = model.spans().tolist(), model.config
    return figures.heat_map(
        spans, config.max_span, config.ramp, heading(file.name, spans, config.max_span, state["step"])
    )


def _runs(source: Path) -> list[Path]:
    found = run_record.directories_below(source)
    if not found:
        raise UserError(f"{source} is no checkpoint, and no run that has begun is in it; give the directory of a run")
    return found


def _of_run(record: RunRecord, folder: Path) -> Iterator[Named]:
    model, spans, over_time = record.config.model, record.spans(), record.spans_over_time()
    if spans is None:
        return
    valid = record.score("valid")
    score = "" if valid is None else f"{valid:.3f} {units.label(record.unit)} on valid"
    step = record.scores.get("step", record.step)
    title = heading(record.directory.name, spans, model.max_span, step, score)
    yield folder / "spans", figures.heat_map(spans, model.max_span, model.ramp, title)
    if len(over_time) > 1:
        yield folder / "evolution", figures.evolution(over_time, model.max_span, model.ramp, title)
