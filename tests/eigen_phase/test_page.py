"""`eigen-phase page` as a person types it, and the steps that a clock names."""

import shutil
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from eigen_phase.cli import main
from eigen_phase.page import Course, clock, named_steps
from eigen_phase.run_directory import RunDirectory
from interp_core.files.artifacts import load_json
from page_parts import Page

ROOT = Path(__file__).parents[2]


def test_one_clock_has_the_history_of_the_run(small_run: RunDirectory, tmp_path: Path) -> None:
    run = tmp_path / small_run.name
    shutil.copytree(small_run.folder, run)
    done = CliRunner().invoke(
        main, ["page", str(run), "--profile", "smoke"], catch_exceptions=False
    )

    assert done.exit_code == 0, done.output
    page = Page.of((run / "page.html").read_text())
    clock = page.view("clock")
    accuracy = clock["panels"][0]["lines"][0]["values"]
    eigenvalues = clock["panels"][2]["dots"]["values"]

    assert page.fetched == []
    assert clock["steps"] == small_run.history["step"].tolist()
    np.testing.assert_allclose(accuracy, small_run.history["pattern_accuracy"], rtol=1e-3)
    assert [None not in row for row in eigenvalues] == np.isfinite(
        small_run.history["eigenvalues"]
    ).all(axis=1).tolist()


def test_the_largest_eigenvalue_says_of_how_many_rows_it_is(small_run: RunDirectory) -> None:
    """Its size depends on them: the one whose peak is named is the one that is drawn."""
    found = {"midpoint": 15.2, "metrics": {}, "peak": {"step": 20}}
    course = Course(128, np.array([10, 20]), np.array([1.5, 4.0]))
    shown = clock(small_run, found, course)
    few, many = next(one for one in shown["panels"] if one["title"] == "Spectrum")["lines"]
    looked = {
        step: value
        for step, value in zip(shown["steps"], many["values"], strict=True)
        if value is not None
    }

    assert few["label"] == f"the largest, {small_run.training.probe_sequences} rows"
    assert many["label"] == "the largest, 128 rows"
    assert looked == {10: 1.5, 20: 4.0}
    assert {"label": "largest eigenvalue's peak, 128 rows", "step": 20} in shown["events"]


def test_every_training_that_turned_has_its_steps_named() -> None:
    """Of the committed run, in which all do."""
    committed = load_json(
        ROOT / "data" / "eigen_phase" / "metrics" / "transition" / "transition.json"
    )

    for name, found in committed["runs"].items():
        steps = named_steps(found)
        assert steps["accuracy"] == found["midpoint"], name
        assert len(steps) >= 2, name


def test_without_a_run_it_says_where_the_page_of_all_is() -> None:
    done = CliRunner().invoke(main, ["page"])
    assert done.exit_code == 2
    assert done.stderr == (
        "error: name a run directory of yours; `make report` has the page of the run\n"
    )
