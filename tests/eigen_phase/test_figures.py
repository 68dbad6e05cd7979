"""Figures of finished runs: every kind of run is drawn, equal numbers give equal bytes, words agree
with reports.
"""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from drawn_figures import assert_legible, figures_saved
from eigen_phase import figures_controls, figures_run, figures_seeds
from eigen_phase.figures import draw_all, draw_run
from eigen_phase.measure_landscape import attention_patterns
from eigen_phase.measure_transition import transition_report
from eigen_phase.params import EigenPhase
from eigen_phase.run_directory import RunDirectory, write_run
from interp_core.errors import InputError
from interp_core.plotting import NULL
from interp_core.training.history import History

TURNED = {"verdict": "transition", "midpoint": 15.0, "sentence": "transition at step 15"}
FLAT = {"verdict": "no transition", "midpoint": None, "sentence": "no transition: .1 to .1"}


def inked(path: Path) -> float:
    """Share of pixels that are not white."""
    return float((matplotlib.image.imread(path)[..., :3].min(axis=-1) < 0.98).mean())


def xs(line: Line2D) -> np.ndarray:
    """Where a line's points lie."""
    return np.asarray(line.get_xdata(), dtype=float)


def with_history(
    run: RunDirectory,
    place: Path,
    history: History,
    *,
    diverged: str | None = None,
    name: str | None = None,
) -> RunDirectory:
    """A run like another one with other rows."""
    write_run(
        place,
        name or run.name,
        run.training,
        history,
        None if diverged else run.model(),
        bounds=run.config["bounds"],
        working=run.folder,
        diverged=diverged,
    )
    return RunDirectory.open(place)


@pytest.mark.parametrize("found", [TURNED, FLAT], ids=["turned", "flat"])
def test_a_run_is_drawn_whole_and_twice_the_same(
    found: dict[str, object], small_run: RunDirectory, tmp_path: Path
) -> None:
    arrays = attention_patterns(small_run)
    files = draw_run(small_run, tmp_path / "one", found=found, arrays=arrays)
    assert [file.stem for file in files] == [
        "phase",
        "heads",
        "patterns",
        "eigenvalues",
        "alignment",
    ]
    again = draw_run(small_run, tmp_path / "two", found=found, arrays=arrays)
    for file, other in zip(files, again, strict=True):
        assert inked(file) > 0.02
        assert file.read_bytes() == other.read_bytes()


def test_a_run_without_curvature_has_no_panels_for_it(
    small_run: RunDirectory, tmp_path: Path
) -> None:
    names = (
        "eigenvalues",
        "residuals",
        "alignment",
        "products",
        "persistence",
        "gradient",
        "top_",
        "most_",
        "spectral",
    )
    rows: History = [
        {name: value for name, value in row.items() if not name.startswith((*names, "worst_"))}
        for row in small_run.rows
    ]
    run = with_history(small_run, tmp_path / "run", rows)
    files = draw_run(run, tmp_path / "figures", found=TURNED, arrays={})
    assert [file.stem for file in files] == ["phase", "heads"]


def test_a_diverged_run_is_drawn_up_to_there_and_says_so(
    small_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(figures_run, "note", lambda _, text: said.append(text))
    run = with_history(
        small_run, tmp_path / "run", small_run.rows[:5], diverged="the loss is nan at step 9"
    )
    draw_run(run, tmp_path / "figures", found=FLAT, arrays={})
    assert all("the loss is nan at step 9" in text for text in said)


def test_the_transition_is_marked_where_the_report_has_it(
    small_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Figure] = []
    monkeypatch.setattr(figures_run, "note", lambda figure, _: seen.append(figure))
    figures_run.phase(small_run, TURNED, tmp_path / "phase.png")
    for axes in seen[0].axes:
        assert any(
            np.allclose(xs(line), 15.0) for line in axes.lines if line.get_linestyle() == "--"
        )
    drawn = {
        round(float(v), 6)
        for line in seen[0].axes[1].lines
        for v in np.asarray(line.get_ydata(), dtype=float)
    }
    assert {round(float(v), 6) for v in small_run.history["pattern_accuracy"]} <= drawn


def test_leads_and_lags_are_drawn_at_their_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Figure, str]] = []
    monkeypatch.setattr(figures_seeds, "note", lambda figure, text: seen.append((figure, text)))
    early = {"value": 0.7, "low": 0.6, "high": 0.8}
    late = {"value": 1.2, "low": 0.9, "high": 1.5}
    lag = {"event": "fall", "dated": 5, "of": 5, "ratio": early, "verdict": "leads"}
    grey = {"event": "rise", "dated": 5, "of": 5, "ratio": late, "verdict": "none shown"}
    none = {"event": "rise", "dated": 4, "of": 5, "ratio": None, "verdict": "none"}
    lags = {"held_out_loss": lag, "top_eigenvalue": grey, "persistence": none}
    report = {"runs": 5, "lags": lags}
    figures_seeds.lags("tiled", report, tmp_path / "lags.png")
    figure, text = seen[0]
    assert "persistence\u00a0(4)" in text
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "top eigenvalue",
        "held out loss",
    ]
    points = {round(float(xs(line)[0]), 3) for line in axes.lines if len(xs(line)) == 1}
    assert points == {0.7, 1.2}


def test_verdicts_of_a_condition_are_counted(small_run: RunDirectory) -> None:
    found = {small_run.name: TURNED}
    assert figures_controls._verdicts(found, [small_run, small_run]) == "2 transition"


def test_seeds_are_laid_over_each_other_at_their_own_midpoints(
    small_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Figure] = []
    monkeypatch.setattr(figures_seeds, "note", lambda figure, _: seen.append(figure))
    figures_seeds.aligned(
        [small_run],
        {"runs": {small_run.name: TURNED}},
        tmp_path / "seeds.png",
        largest={},
    )
    steps = small_run.history["step"]
    np.testing.assert_allclose(xs(seen[0].axes[0].lines[0]), steps[steps > 0] / 15.0)


def test_controls_and_interventions_are_legible_with_a_key_to_every_line(
    small_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = figures_saved(monkeypatch)
    steps = np.array([10, 20, 30])
    arms = [arm for looks in figures_controls.ARMS.values() for arm in looks]
    accuracies = {f"{arm}_accuracy": np.array([0.1, 0.2, 0.9]) for arm in (*arms, "free")}
    figures_controls.alignment(
        [small_run], {small_run.name: {"refresh_step": steps, **accuracies}}, tmp_path / "a.png"
    )

    effect = -np.linspace(0, 0.5, 12).reshape(3, 2, 2)
    ends = {"effect_low": effect - 0.01, "effect_high": effect + 0.01}
    pair = {"value": -0.4, "low": -0.5, "high": -0.3, "n": 8}
    others = {"random": {**pair, "value": -0.2}, "lowest": -0.45}
    sets = {"heads": ["L1H0", "L1H1"], "change": pair, "others": others}
    figures_controls.ablations(
        {small_run.name: {"step": steps, "effect": effect, **ends}},
        {small_run.name: {"induction": sets, "previous_token": sets}},
        tmp_path / "b.png",
    )

    found, told = {small_run.name: FLAT}, {"verdict": "clamped: earlier; and later"}
    figures_controls.accuracies([small_run], found, told, tmp_path / "alone.png")
    figures_controls.accuracies([small_run] * 3, found, told, tmp_path / "three.png")

    other = with_history(small_run, tmp_path / "masked-s0", small_run.rows, name="masked-s0")
    found = {**found, other.name: FLAT}
    figures_controls.accuracies([small_run] * 3 + [other], found, told, tmp_path / "both.png")

    for name, figure in seen.items():
        assert_legible(name, figure)
    labels = [label for looks in figures_controls.ARMS.values() for *_, label in looks.values()]
    assert all(label in seen["a"].words for label in labels)
    assert "L1H0\nL1H1" in seen["b"].words
    assert "best two induction heads" in seen["b"].words
    assert f"{small_run.condition}: no transition" in seen["alone"].words
    assert f"{small_run.condition} (3): 3 no transition" in seen["three"].words

    # Beside each other, with the names below: no place for a panel is empty.
    several, single, *names = seen["both"].figure.axes
    assert several.get_position().y0 == pytest.approx(single.get_position().y0)
    assert "masked: no transition" in seen["both"].words
    assert not any(axes.axison for axes in names)

    # Few pairs have no 95 %: from their mean down to the one that costs most.
    grey = [line for line in seen["b"].figure.axes[1].lines if line.get_color() == NULL]
    assert [np.asarray(line.get_ydata()).tolist() for line in grey[:2]] == [[-0.45, -0.2], [-0.2]]
    assert "central 95 %" not in seen["b"].words


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no runs"):
        draw_all(tmp_path)


def test_the_report_of_a_real_run_has_what_figures_read(
    section: EigenPhase, small_run: RunDirectory
) -> None:
    found = transition_report([small_run], section.transition)["runs"][small_run.name]
    assert {"verdict", "sentence", "midpoint"} <= found.keys()
