"""Every figure can be drawn from files, reads well at half size, and says what its numbers say."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

import planted_reports as planted
from drawn_figures import Drawn, figures_saved
from interp_core.errors import InputError
from interp_core.files.artifacts import save_arrays, save_json
from interp_core.plotting import DIVERGING, INDUCTION
from pythia_topology import (
    figures,
    figures_causal,
    figures_circuits,
    figures_depth,
    figures_training,
)

FAMILIES = {
    "one small model": {"neox-4l": (4, 4)},
    "three models": {"neox-4l": (4, 4), "neox-6l": (6, 4), "neox-8l": (8, 4)},
}


def place_in(folder: Path) -> Callable[[str, str], Path]:
    """Where a stage has its files."""
    return lambda kind, command: folder / kind if kind == "figures" else folder / kind / command


def flat_in(folder: Path) -> Callable[[str, str], Path]:
    """Where an experiment has all of its files."""
    return lambda _kind, _command: folder


def _write(folder: Path, models: dict[str, tuple[int, int]], *, with_heads: bool = True) -> None:
    """The files of a whole pipeline."""
    scores = {
        name: planted.scores(*size, planted=with_heads, seed=i)
        for i, (name, size) in enumerate(models.items())
    }
    for name, arrays in scores.items():
        save_arrays(folder / "scores" / "profile" / f"scores_{name}.npz", arrays)
        save_json(folder / "metrics" / "profile" / f"profile_{name}.json", planted.profile(arrays))
        save_json(folder / "metrics" / "nulls" / f"nulls_{name}.json", planted.nulls(arrays))
        save_json(folder / "metrics" / "lagbuckets" / f"lags_{name}.json", planted.lags(arrays))
        for command, build in (
            ("causal", planted.causal),
            ("emergence", planted.emergence),
            ("composition", planted.composition),
        ):
            report, found = build(arrays)
            save_json(folder / "metrics" / command / f"{command}_{name}.json", report)
            save_arrays(folder / "scores" / command / f"{command}_{name}.npz", found)
    if len(scores) > 1:
        save_json(folder / "metrics" / "multisize" / "multi_size.json", planted.crosssize(scores))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Drawn]:
    """Figures by the stem of their file."""
    return figures_saved(monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_figure_of_every_family_is_drawn_readable_and_repeats_byte_by_byte(
    tmp_path: Path, drawn: dict[str, Drawn], family: str
) -> None:
    models = FAMILIES[family]
    _write(tmp_path, models)
    written = figures.draw_all(list(models), place_in(tmp_path))
    together = {"causal_delta", "dose", "lag_profiles", "emergence"} | (
        {"multi_size_overlay"} if len(models) > 1 else set()
    )
    kinds, deepest = ("heatmap", "composition"), list(models)[-1]
    assert {path.stem for path in written} == together | {f"{kind}_{deepest}" for kind in kinds}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        path.name for path in written
    }
    for name, figure in drawn.items():
        _assert_readable(name, figure)
    if len(models) == 1:
        first = {path: path.read_bytes() for path in written}
        assert {
            path: path.read_bytes() for path in figures.draw_all(list(models), place_in(tmp_path))
        } == first


def test_an_experiment_has_maps_of_every_model(tmp_path: Path, drawn: dict[str, Drawn]) -> None:
    models = FAMILIES["three models"]
    _write(tmp_path / "stages", models)
    (tmp_path / "mine").mkdir()
    for file in (tmp_path / "stages").rglob("*_*.*"):
        shutil.copy(file, tmp_path / "mine")

    written = figures.draw_all(list(models), flat_in(tmp_path / "mine"))
    maps = {f"{kind}_{name}" for kind in ("heatmap", "composition") for name in models}
    assert maps <= {path.stem for path in written}
    for name in maps:
        _assert_readable(name, drawn[name])


def test_five_models_share_a_figure_and_it_stays_readable(
    tmp_path: Path, drawn: dict[str, Drawn]
) -> None:
    names = ("pythia-70m", "pythia-160m", "pythia-410m", "pythia-1b", "pythia-1.4b-deduped")
    scores = {name: planted.scores(4 + i, 4, seed=i) for i, name in enumerate(names)}
    figures.draw_causal(
        {name: planted.causal(arrays)[0] for name, arrays in scores.items()}, tmp_path
    )
    figures.draw_lags({name: planted.lags(arrays) for name, arrays in scores.items()}, tmp_path)
    figures.draw_emergence(
        {name: planted.emergence(arrays) for name, arrays in scores.items()}, tmp_path
    )
    figures.draw_crosssize(planted.crosssize(scores), tmp_path / "multi_size_overlay.png")
    assert len(drawn) == 5
    for name, figure in drawn.items():
        _assert_readable(name, figure)
        assert all(model in figure.words for model in names)


def test_a_model_of_24_layers_and_16_heads_stays_readable(
    tmp_path: Path, drawn: dict[str, Drawn]
) -> None:
    arrays, name = planted.scores(24, 16), "pythia-410m"
    figures.draw_profile(arrays, planted.profile(arrays), name, tmp_path)
    figures.draw_nulls(planted.nulls(arrays), arrays, name, tmp_path)
    figures.draw_composition(*planted.composition(arrays), arrays, name, tmp_path)
    assert len(drawn) == 4
    for stem, figure in drawn.items():
        _assert_readable(stem, figure)


def test_without_induction_heads_every_figure_is_readable_and_shows_no_peak(
    tmp_path: Path, drawn: dict[str, Drawn]
) -> None:
    models = {"flat-4l": (4, 4), "flat-6l": (6, 4)}
    _write(tmp_path, models, with_heads=False)
    figures.draw_all(list(models), place_in(tmp_path))
    arrays = planted.scores(4, 4, planted=False)
    figures.draw_profile(arrays, planted.profile(arrays), "flat-4l", tmp_path)
    figures.draw_nulls(planted.nulls(arrays), arrays, "flat-4l", tmp_path)
    for name, figure in drawn.items():
        _assert_readable(name, figure)
    for name in (
        "profile_flat-4l",
        "heatmap_flat-4l",
        "nulls_flat-4l",
        "multi_size_overlay",
        "lag_profiles",
    ):
        assert "no induction heads" in drawn[name].words, name
    (profile,) = drawn["profile_flat-4l"].figure.axes
    assert "peak" not in profile.get_legend_handles_labels()[1]
    assert not drawn["heatmap_flat-4l"].figure.axes[0].patches


def test_commands_that_have_not_run_are_left_out_and_a_missing_file_is_named(
    tmp_path: Path,
) -> None:
    arrays = planted.scores(4, 4)
    for name in ("a", "b"):
        save_arrays(tmp_path / "scores" / "profile" / f"scores_{name}.npz", arrays)
        save_json(
            tmp_path / "metrics" / "profile" / f"profile_{name}.json", planted.profile(arrays)
        )
    (heatmap,) = figures.draw_all(["a", "b"], place_in(tmp_path))
    assert heatmap.name == "heatmap_a.png"
    save_json(tmp_path / "metrics" / "lagbuckets" / "lags_b.json", planted.lags(arrays))
    with pytest.raises(InputError, match=r"lags_a\.json is missing"):
        figures.draw_all(["a", "b"], place_in(tmp_path))


def test_figures_need_no_model_library() -> None:
    code = (
        "import sys, pythia_topology.figures;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_signed_maps_are_centred_on_zero_and_shares_run_from_zero_to_one(
    drawn: dict[str, Drawn], tmp_path: Path
) -> None:
    arrays = planted.scores(4, 4)
    figures.draw_heatmap(arrays, planted.profile(arrays), "a", tmp_path)
    figures.draw_composition(*planted.composition(arrays), arrays, "a", tmp_path)
    maps = [image for one in drawn.values() for axes in one.figure.axes for image in axes.images]
    assert len(maps) == 1 + 1
    for image in maps:
        low, high = image.get_clim()
        assert (low, high) == (0.0, 1.0) or (low == -high and image.get_cmap().name == DIVERGING)


def test_the_shaded_mass_of_a_profile_is_as_wide_as_the_bandwidth_in_its_file() -> None:
    for seed in range(5):
        arrays = planted.scores(8, 4, seed=seed)
        profile = planted.profile(arrays)
        axes = _axes()
        figures_depth.plot_layer_profile(axes, arrays["excess_prefix_matching"], profile)
        (span,) = [patch for patch in axes.patches if "mass" in str(patch.get_label())]
        low, high = span.get_extents().transformed(axes.transData.inverted()).intervalx
        assert high - low == pytest.approx(profile["bandwidth"]["value"])
        assert low < profile["centre_of_mass"]["value"] < high


@pytest.mark.parametrize("mode", ["mean", "top_quantile", "count"])
def test_the_peak_line_is_at_the_files_peak_and_heads_are_shown_unless_they_are_counted(
    mode: str,
) -> None:
    arrays = planted.scores(8, 4)
    profile = planted.profile(arrays, mode=mode)
    axes = _axes()
    figures_depth.plot_layer_profile(axes, arrays["excess_prefix_matching"], profile)
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(_x(lines["peak"])) == [profile["peak_rel"]["value"]] * 2
    assert np.array_equal(_y(lines["layer profile"]), profile["per_layer"])
    assert ("a head" in lines) == (mode != "count")


def test_ablating_shows_changes_in_percentage_points_beside_the_random_control() -> None:
    report, _ = planted.causal(planted.scores(4, 4))
    axes = _axes()
    figures_causal.plot_changes(axes, report, "accuracy")
    points = [
        (float(_x(line)[0]), str(line.get_marker())) for line in axes.lines if len(_x(line)) == 1
    ]
    for ablation in report["ablations"].values():
        accuracy = ablation["accuracy"]
        assert (pytest.approx(100 * accuracy["top"]["value"]), "o") in points
        assert (pytest.approx(100 * accuracy["outside"]["random"]["value"]), "s") in points
        assert (pytest.approx(100 * accuracy["layer_matched"]["random"]["value"]), "D") in points


def test_captions_say_where_partners_come_from_and_that_there_may_be_no_test(
    drawn: dict[str, Drawn], tmp_path: Path
) -> None:
    report, _ = planted.causal(planted.scores(4, 4))
    few = report | {"p_value": None, "draws": 10}
    figures.draw_causal({"a": report, "b": few}, tmp_path)

    words = " ".join(drawn["causal_delta"].words.split())
    assert "a: 200 of 560 distinct sets of heads outside the circuit, from L0, L3" in words
    assert "2 a set from another layer than its own" in words
    assert "no test possible (10 sets)" in words
    assert "from the same layers" not in words
    assert "50 of 2" in drawn["dose"].words


def test_a_peak_without_an_interval_is_printed_as_a_layer() -> None:
    profile = planted.profile(planted.scores(8, 4))
    profile["peak_rel"] |= {"low": None, "high": None}
    text = figures_depth.shape_text(profile)
    assert f"peak in layer {profile['peak_layer']}" in text
    assert text.count("[") == 2  # of centre and bandwidth


def test_the_peak_s_equivalence_stands_beside_the_centre_s(
    drawn: dict[str, Drawn], tmp_path: Path
) -> None:
    scores = {f"{n}l": planted.scores(n, 4, seed=n) for n in (4, 6, 8)}
    report = planted.crosssize(scores)
    figures.draw_crosssize(report, tmp_path / "multi_size_overlay.png")
    words = drawn["multi_size_overlay"].words

    for pair in report["pairs"]:
        assert f"{pair['verdict']}\npeak: {pair['peak_verdict']}" in words


def test_the_onset_of_each_curve_is_marked_and_step_zero_has_its_place() -> None:
    report, arrays = planted.emergence(planted.scores(4, 4))
    axes = _axes()
    start = figures_training.log_start({"a": (report, arrays)})
    assert start == 110.0 / 8
    figures_training.plot_emergence(axes, report, arrays, start=start)
    marked = {float(_x(line)[0]) for line in axes.lines if list(_y(line)) == [0, 1]}
    assert marked == {onset["step"]["value"] for onset in report["onset"].values()}
    left, right = axes.get_xlim()
    assert left < 0 < 1024 < right
    assert figures_training.onset_text(dict.fromkeys(report["onset"])) == "nothing emerged"


def test_pairs_whose_writer_is_in_no_earlier_layer_are_blank_in_the_composition_map() -> None:
    arrays = planted.scores(4, 3)
    _, found = planted.composition(arrays)
    writers, readers = arrays["previous_token"] > 0.5, arrays["excess_prefix_matching"] > 0.5
    axes = _axes()
    image = figures_circuits.plot_z(axes, found["z"], writers=writers, readers=readers)
    shown = np.isnan(np.ma.filled(np.ma.asarray(image.get_array()), np.nan))
    layer = np.arange(12) // 3
    assert np.array_equal(shown, layer[:, None] >= layer[None, :])
    bottom, top = axes.get_ylim()
    assert bottom > top  # layer 0 on top
    arrows = [line for line in axes.lines if line.get_marker() == "^"]
    assert np.array_equal(_x(arrows[0]), np.flatnonzero(readers))
    assert arrows[0].get_color() == INDUCTION


def _x(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_xdata(), dtype=np.float64)


def _y(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_ydata(), dtype=np.float64)


def _axes() -> Axes:
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def _assert_readable(name: str, drawn: Drawn) -> None:
    """At half size text is at least 7 pixels high; no text leaves the page or lies on another; n is
    stated.
    """
    page = drawn.figure.bbox
    assert "n = " in drawn.words, name
    for text, box in drawn.texts:
        assert float(text.get_fontsize()) * drawn.figure.dpi / 72 / 2 >= 7, (name, text)
        assert page.x0 - 2 < box.x0 < box.x1 < page.x1 + 2, (name, text)
        assert page.y0 - 2 < box.y0 < box.y1 < page.y1 + 2, (name, text)
    for (first, one), (second, two) in combinations(drawn.texts, 2):
        common = Bbox.intersection(one, two)
        assert common is None or min(common.width, common.height) < 3, (name, first, second)
