"""Lay out a workspace of Weights & Biases for the runs of a project: losses, spans, cost, and each layer's heads."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import requests
import wandb

from adaptive_span.errors import UserError, first_line
from adaptive_span.reporting import units
from adaptive_span.reporting.tracked_names import HEAT_MAP, head_curve

if TYPE_CHECKING:
    from wandb.apis.public import Run

try:
    from wandb_workspaces.reports.v2.interface import LinePlot, MediaBrowser, PanelTypes, ScatterPlot, SummaryMetric
    from wandb_workspaces.workspaces import Section, Workspace
except ModuleNotFoundError as missing:
    raise UserError(f"there is no {missing.name} here; pip install 'adaptive-span[dashboard]' brings it") from None

NAME = "adaptive-span"
COST = ("tokens_per_second", "ms_per_step", "mfu", "peak_memory_mib", "flops_per_token")


@dataclass(frozen=True)
class Shape:
    """What the panels of a project depend on: its largest model, and the units of its losses."""

    layers: int
    heads: int
    units: tuple[str, ...]


def save(project: str) -> str:
    """Make the workspace of a project, and return its address.

    Args:
        project: PROJECT, or ENTITY/PROJECT.

    Raises:
        UserError: Nobody is logged in, there is no such project, or it has no run of this program.
    """
    try:
        if not wandb.login(prompt=False):
            raise UserError("nobody is logged in to Weights & Biases; log in with `wandb login`, and try again")
        api = wandb.Api()
        entity, _, name = project.rpartition("/")
        entity = entity or api.default_entity or ""
        made = workspace(entity, name, shape(list(api.runs(f"{entity}/{name}")), project))
        made.save()  # type: ignore[no-untyped-call]
    except (wandb.Error, ValueError, requests.RequestException) as error:  # ValueError: there is no such project
        raise UserError(f"Weights & Biases has refused a workspace for {project} ({first_line(error)})") from error
    return str(made.url)


def shape(runs: "list[Run]", project: str) -> Shape:
    """Return what the panels of these runs depend on."""
    models = [run.config["model"] for run in runs if "num_heads" in run.config.get("model", ())]
    if not models:
        raise UserError(f"{project} holds no run of adaptive-span; train one with tracking.project={project} first")
    quoted = {units.of_level(run.config["data"]["level"]) for run in runs if "data" in run.config}
    layers, heads = (max(model[key] for model in models) for key in ("num_layers", "num_heads"))
    return Shape(layers, heads, tuple(sorted(quoted)))


def workspace(entity: str, project: str, of: Shape) -> Workspace:
    """Return the workspace: four sections, and of the heads one panel per layer."""
    losses: list[PanelTypes] = [_curve(f"{part}/{unit}") for part in ("valid", "train") for unit in of.units]
    losses += [
        ScatterPlot(
            title=f"{unit} on test by operations per token",
            x=SummaryMetric("flops/learned_spans"),
            y=SummaryMetric(f"exact/test/{unit}"),
            log_x=True,
        )
        for unit in of.units
    ]
    spans: list[PanelTypes] = [
        MediaBrowser(title="span of every head", media_keys=[HEAT_MAP], num_columns=1),
        _curve("span/mean"),
        _curve("span/max"),
    ]
    layers = [
        LinePlot(
            title=f"layer {layer}: span in tokens",
            x="step",
            y=[head_curve(layer, head) for head in range(of.heads)],
            log_y=True,
        )
        for layer in range(of.layers)
    ]
    return Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            Section(name="Loss", panels=losses, is_open=True),
            Section(name="Spans", panels=spans, is_open=True),
            Section(name="Cost", panels=[*map(_curve, COST)], is_open=True),
            Section(name="Heads, layer by layer", panels=[*layers]),
        ],
    )


def _curve(key: str) -> LinePlot:
    return LinePlot(title=key, x="step", y=[key])
