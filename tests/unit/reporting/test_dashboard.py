"""What `adaptive-span dashboard` would send to Weights & Biases, and what it says to somebody who is not logged in."""

import sys

import pytest

from tests.conftest import ENVIRONMENT, finish, sentence


@pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # of wandb-workspaces' own
def test_a_workspace_has_a_panel_for_each_layer_however_many_heads_there_are():
    from adaptive_span.reporting import dashboard

    made = dashboard.workspace("me", "mine", dashboard.Shape(36, 8, ("bpc",)))._to_model()
    assert (made.entity, made.project) == ("me", "mine")
    sent = made.spec.model_dump(by_alias=True, exclude_none=True)["section"]["panelBankConfig"]["sections"]
    sections = {section["name"]: [panel["config"] for panel in section["panels"]] for section in sent}
    assert list(sections) == ["Loss", "Spans", "Cost", "Heads, layer by layer"]
    assert [panel.get("metrics") for panel in sections["Loss"]] == [["valid/bpc"], ["train/bpc"], None]
    assert sections["Loss"][-1]["yAxis"] == "summary:exact/test/bpc"
    assert sections["Spans"][0]["mediaKeys"] == ["spans/heat_map"]
    layers = sections["Heads, layer by layer"]
    assert len(layers) == 36
    assert layers[3]["metrics"] == [f"span/layer_03/head_{head}" for head in range(8)]
    assert {panel["xAxis"] for panels in sections.values() for panel in panels if "metrics" in panel} == {"step"}


def test_without_a_login_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "WANDB_API_KEY", "")
    monkeypatch.setitem(ENVIRONMENT, "NETRC", str(tmp_path / "netrc"))
    refused = finish([sys.executable, "-m", "adaptive_span", "dashboard", "mine"], tmp_path, ok=False)
    assert sentence(refused) == "nobody is logged in to Weights & Biases; log in with `wandb login`, and try again"
