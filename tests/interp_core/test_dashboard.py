"""What the dashboard's command sends to a server, or says that it would."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from click.testing import CliRunner, Result

from interp_core.cli import main
from interp_core.console.dashboard import SHOWN, Shown
from interp_core.training import account
from interp_core.training.curves import AXIS
from wandb_server import ENTITY, KEY, KeptRun, Server, wandb_server

ROOT = Path(__file__).resolve().parents[2]
GROUPS = [{"section": "config", "name": f"{key}.value"} for key in ("profile", "seed")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with an account, and a run in one project."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv(account.FOUND, raising=False)
    with wandb_server() as kept:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", kept.address)
        kept.runs["a"] = KeptRun("a", {"project": "lab"})
        yield kept
    wandb.teardown()


def call(project: str = "lab") -> Result:
    return CliRunner().invoke(main, ["dashboard", "--entity", ENTITY, "--project", project])


def specification(view: dict[str, Any]) -> dict[str, Any]:
    return json.loads(view["spec"])


def drawn(panels: list[dict[str, Any]]) -> list[str]:
    """Names of the curves that line plots draw, each over the declared axis."""
    lines = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert {one["xAxis"] for one in lines} <= {AXIS}
    return [name for one in lines for name in one["metrics"]]


def names(shown: Shown) -> set[str]:
    return {curve.name for curve in shown.curves}


def test_a_view_a_study_and_a_report_with_a_section_a_study(server: Server) -> None:
    done = call()
    assert done.exit_code == 0, done.output
    assert done.output.count(f"{server.address}/{ENTITY}/lab") == len(server.views)

    trained = [shown for shown in SHOWN if shown.columns]
    report, *views = server.views
    assert [view["type"] for view in views] == ["project-view"] * len(trained)
    assert report["type"] == "runs"

    for shown, view in zip(trained, views, strict=True):
        section = specification(view)["section"]
        (runs,) = section["runSets"]
        (kept,) = runs["filters"]["filters"]
        assert (kept["key"]["name"], kept["value"]) == ("study", shown.study)
        assert runs["grouping"] == GROUPS
        assert section["settings"]["xAxis"] == AXIS

        panels = section["panelBankConfig"]["sections"]
        found = {name for one in panels for name in drawn(one["panels"])}
        assert found == names(shown), shown.study
        for one in panels:
            assert {name.partition("/")[0] for name in drawn(one["panels"])} <= {one["name"]}

    blocks = specification(report)["blocks"]
    headings = [block for block in blocks if block["type"] == "heading"]
    assert len(headings) == len(SHOWN)
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert len(grids) == len(trained) + sum(shown.answers for shown in SHOWN)
    for grid in grids:
        (runs,) = grid["runSets"]
        assert runs["grouping"] == GROUPS
        assert runs["filters"]["filters"][1]["value"] == "evaluate"
        assert drawn(grid["panelBankSectionConfig"]["panels"]) or runs["name"] == "evaluations"


def test_without_an_account_it_says_what_it_would_do(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = call()
    assert done.exit_code == 0, done.output
    assert "would make a view 'Induction Lab, eigen phase'" in done.output
    assert "nothing was sent" in done.output
    assert server.requests == 0


def test_a_project_without_runs_is_one_line(server: Server) -> None:
    done = call("elsewhere")
    assert done.exit_code == 2
    assert "elsewhere' not found: send a run there first" in done.output
    assert server.views == []


def test_every_study_and_every_committed_history_is_on_the_dashboard() -> None:
    studies = {folder.name for folder in (ROOT / "packages").iterdir() if folder.is_dir()}
    assert studies <= {shown.study for shown in SHOWN}

    shown = {one.study: one for one in SHOWN}
    for folder, study in (("training", "reference_models"), ("mamba_training", "mamba_models")):
        for file in (ROOT / "data" / folder).glob("*.csv"):
            columns = file.read_text().splitlines()[0].split(",")[1:]
            assert set(columns) <= set(shown[study].columns), file
