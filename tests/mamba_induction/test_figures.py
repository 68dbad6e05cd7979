"""Figures from the files of a whole run: nothing leaves the page or lies on other text, and bytes
repeat.
"""

import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from drawn_figures import Drawn, figures_saved
from interp_core.errors import InputError
from interp_core.files.artifacts import load_json
from mamba_induction.figures import draw_all
from mamba_induction.figures_causal import sufficient, table_of
from mamba_induction.figures_gap import plot_parts, prediction_gap
from mamba_induction.figures_layers import layer_wise
from mamba_induction.figures_summary import summary_text
from mamba_project import Said

MODELS = ["mamba", "mamba-tuned", "twin"]


@pytest.fixture
def results(finished: tuple[Path, Said]) -> Path:
    """The folder of a finished experiment."""
    return finished[0]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Drawn]:
    """Figures by the stem of their file."""
    return figures_saved(monkeypatch)


def test_every_figure_is_readable_at_half_size_says_its_n_and_repeats_byte_by_byte(
    results: Path, drawn: dict[str, Drawn]
) -> None:
    before = {path: path.read_bytes() for path in results.glob("*.png")}
    again = draw_all(MODELS, "mamba-tuned", lambda _kind, _command: results)
    assert {path: path.read_bytes() for path in again} == before
    assert len(drawn) == 5 + 4
    for name, seen in drawn.items():
        figure, page = seen.figure, seen.figure.bbox
        assert "n = " in seen.words, name
        assert "mathdefault" not in seen.words, name
        for text, box in seen.texts:
            assert float(text.get_fontsize()) * figure.dpi / 72 / 2 >= 7, (name, text)
            assert page.x0 - 2 < box.x0 < box.x1 < page.x1 + 2, (name, text)
            assert page.y0 - 2 < box.y0 < box.y1 < page.y1 + 2, (name, text)
        for (first, one), (second, two) in combinations(seen.texts, 2):
            common = Bbox.intersection(one, two)
            assert common is None or min(common.width, common.height) < 4, (name, first, second)


def test_of_layers_every_point_lies_inside_its_axes(
    results: Path, drawn: dict[str, Drawn], tmp_path: Path
) -> None:
    analyses = {name: load_json(results / f"analysis_{name}.json") for name in MODELS}
    for name, layer in (("mamba", 0), ("twin", 1)):
        excess = analyses[name]["scores"]["offset_profile_excess"]
        for end in ("value", "low", "high"):
            excess[end][layer][2] = 0.9
    layer_wise(analyses, tmp_path / "layers.png")

    points = 0
    for axes in drawn["layers"].figure.axes:
        low, high = axes.get_ylim()
        for line in axes.lines:
            if line.get_transform() == axes.transData:
                y = np.asarray(line.get_ydata(), dtype=float)
                assert ((y >= low) & (y <= high)).all()
                points += len(y)
    assert points > 50
    assert "random weights" in drawn["layers"].words


def test_the_pipeline_keeps_no_single_sequences(results: Path, tmp_path: Path) -> None:
    for file in results.glob("*.*"):
        for kind in ("metrics", "scores", "training"):
            place = tmp_path / kind
            place.mkdir(exist_ok=True)
            if file.is_file():
                shutil.copy(file, place)

    written = draw_all(MODELS, "mamba-tuned", lambda kind, _: tmp_path / kind)
    assert {path.stem for path in written} == {
        "layer_wise_induction",
        "behaviour",
        "prediction_gap",
        "causal",
        "fine_tuning",
    }


def test_a_report_that_is_missing_is_named(results: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"analysis_other\.json is missing"):
        draw_all(["mamba", "other"], "mamba", lambda *_: results)
    assert draw_all(["mamba"], "mamba", lambda *_: tmp_path) == []


def test_the_drawing_of_interventions_has_the_reports_numbers(results: Path) -> None:
    report = load_json(results / "causal_mamba.json")
    table = table_of(report, "reads")

    assert list(table) == ["L0", "L1", "all"]
    assert list(table["L0"]) == ["-1", "+0", "+1", "+2", "+3", "+4", "+1..+3"]

    cut = report["reads"]["L1"]["+1"]
    assert table["L1"]["+1"]["low"] == cut["accuracy"]["low"]
    assert table["L1"]["+1"]["random"] == cut["random"]["accuracy"]["random"]

    assert list(table_of(report, "taps")["L0"]) == ["0", "1", "2", "3"]
    assert list(table_of(report, "answer_reads")["L0"]) == ["-3", "-2", "-1", "+0", "all"]


def test_of_a_deep_model_the_layers_that_change_most_are_drawn() -> None:
    entry = {"low": 0.0, "high": 0.0, "n": 8, "unit": "prompts"}
    none = {"loss": {"random": entry}, "accuracy": {"random": entry}}
    cuts = {
        f"L{layer}": {"+1": {"accuracy": entry | {"value": -0.1 * layer}, "random": none}}
        for layer in range(8)
    }
    assert list(table_of({"reads": cuts}, "reads")) == ["L4", "L5", "L6", "L7"]


def test_what_suffices_is_drawn_of_models_that_need_a_read_alone(
    drawn: dict[str, Drawn], tmp_path: Path
) -> None:
    share = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 8, "unit": "prompts"}
    against = {"random": {"random": share | {"value": 0.0, "low": 0.0, "high": 0.01}}}
    kept = {
        "layer": 1,
        "offset": 1,
        "clean": share,
        "reads": {"+1": {"accuracy": share} | against},
        "taps": {"0+1": share},
        "circuit": {"one read": share},
    }
    causes = {"copier": {"kept": kept, "n": 8, "draws": 20}, "random": {"kept": None}}
    sufficient(causes, tmp_path / "sufficient.png")

    words = drawn["sufficient"].words
    assert "copier" in words
    assert "random\n" not in words


def test_the_gap_says_how_many_prompts_each_family_has(
    results: Path, drawn: dict[str, Drawn], tmp_path: Path
) -> None:
    report = load_json(results / "gap_mamba.json")
    report["natural"]["scores"]["not_predicted/attention"]["n"] = 3
    prediction_gap({"mamba": report}, tmp_path / "gap.png")

    n = report["repeated"]["scores"]["not_predicted/attention"]["n"]
    told = f"n = {n} prompts of repeated random tokens, 3 of natural text"
    assert told in drawn["gap"].words


def test_the_bars_of_a_logit_are_its_parts(results: Path) -> None:
    family = load_json(results / "gap_mamba.json")["repeated"]
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    plot_parts(axes, family)
    widths = sorted(bar.get_width() for bar in axes.patches)  # pyright: ignore[reportAttributeAccessIssue]
    assert np.allclose(widths, sorted(family["scores"]["second/parts"]["value"]))


def test_the_summary_holds_the_reports_numbers(results: Path) -> None:
    text = summary_text(MODELS, "mamba-tuned", lambda *_: results)
    for name in MODELS:
        scores = load_json(results / f"analysis_{name}.json")["scores"]
        assert f"  loss of copy 1: {scores['loss_by_copy']['value'][0]:.4f}" in text
        gap = load_json(results / f"gap_{name}.json")["natural"]["scores"][
            "not_predicted/attention"
        ]["value"]
        assert f"and not predicted {gap:.4f}" in text

        verdict = load_json(results / f"causal_{name}.json")["verdict"]["says"]
        assert f"{name}: {verdict}" in text
        assert "most first: none" in text  # random weights match no prefix
    assert f"{load_json(results / 'change.json')['perplexity']['ratio']:.4f}" in text


def test_figures_need_no_model_library() -> None:
    heavy = "'torch' in sys.modules or 'transformers' in sys.modules"
    code = f"import sys, mamba_induction.figures; sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
