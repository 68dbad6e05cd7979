"""Over trainings: planted rules are found, trainings are the units, and too few decide nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import planted_answers
from drawn_figures import Drawn, figures_saved
from interp_core.errors import InputError
from interp_core.files.artifacts import load_json, save_json
from pythia_topology import figures_sizes
from pythia_topology.measure_sizes import sizes_summary
from small_project import induct

LAYERS = {"4l": 4, "6l": 6, "8l": 8}
DEPTH = "constant relative depth"
LAYER = "constant layer"
AFTER = "a constant number of layers after the previous-token heads"
SETTINGS: dict[str, Any] = {"margin": 0.1, "alpha": 0.05}


def profile(name: str, centre: float, previous: float | None = 1.0) -> dict[str, Any]:
    """The parts of a profile that are read; `centre` in layers."""
    n_layers = LAYERS[name]

    def over_prompts(value: float) -> dict[str, Any]:
        return {"value": value, "low": None, "high": None, "n": 24, "unit": "prompts"}

    return {
        "name": name,
        "n_layers": n_layers,
        "centre_of_mass": over_prompts((centre + 0.5) / n_layers),
        "centre_in_layers": over_prompts(centre),
        "peak_rel": over_prompts((round(centre) + 0.5) / n_layers),
        "peak_layer": round(centre),
        "previous_token_layer": previous,
        "without_top_heads": -0.6,
        "without_best_layer": -0.9,
    }


def trainings(rule: str, n: int = 5, noise: float = 0.05) -> dict[str, list[dict[str, Any]]]:
    """Several trainings of each size that follow a rule, with seeds that differ by `noise`."""
    rng = np.random.default_rng([n, len(rule)])
    found: dict[str, list[dict[str, Any]]] = {}

    for name, n_layers in LAYERS.items():
        for seed in range(n):
            previous = float(seed % 3)
            centre = {DEPTH: 0.45 * n_layers - 0.5, LAYER: 2.2, AFTER: previous + 1.1}[rule]
            made = profile(name, centre + noise * rng.standard_normal(), previous)
            found.setdefault(name, []).append(made)

    return found


@pytest.mark.parametrize("rule", [DEPTH, LAYER, AFTER])
def test_the_rule_that_trainings_follow_is_found(rule: str) -> None:
    report = sizes_summary(trainings(rule), **SETTINGS)
    assert report["rivals"][0]["name"] == report["rivals_verdict"] == rule
    assert report["verdict"].endswith(f"best rule: {rule}")
    json.dumps(report, allow_nan=False)


def test_one_relative_depth_is_equivalent_and_one_layer_is_not() -> None:
    alike, layer = (sizes_summary(trainings(rule), **SETTINGS) for rule in (DEPTH, LAYER))
    assert alike["centre_of_mass"]["verdict"] == "equivalent within 0.1"
    assert layer["centre_of_mass"]["verdict"] == "different"


def test_trainings_are_the_units_of_every_interval() -> None:
    """24 prompts a training change nothing; five trainings that agree make it narrow."""
    report = sizes_summary(trainings(DEPTH), **SETTINGS)
    for size in report["sizes"].values():
        mean = size["centre_of_mass"]["mean"]
        assert (mean["n"], mean["unit"]) == (5, "trainings")
        values = np.array(size["centre_of_mass"]["values"])
        half = 2.7764 * values.std(ddof=1) / np.sqrt(5)  # Student, 4 degrees of freedom
        assert mean["high"] - mean["value"] == pytest.approx(half, rel=1e-3)


def test_a_lucky_seed_of_each_size_decides_nothing() -> None:
    report = sizes_summary(trainings(DEPTH, n=1), **SETTINGS)
    few = "not enough trainings: fewer than 2 of 4l, 6l, 8l"
    assert report["centre_of_mass"]["verdict"] == report["rivals_verdict"] == few
    assert report["rivals"] == []


def test_seeds_that_differ_more_than_the_margin_are_not_equivalent() -> None:
    """Means agree, but seeds lie .2 of the depth apart, in some sizes the other way."""
    shares = {"4l": (0.35, 0.55), "6l": (0.55, 0.35), "8l": (0.35, 0.55)}
    found = {
        name: [profile(name, share * n_layers - 0.5) for share in shares[name]]
        for name, n_layers in LAYERS.items()
    }
    report = sizes_summary(found, **SETTINGS)
    assert report["centre_of_mass"]["verdict"] == "not decided"


def test_a_training_without_induction_heads_is_counted_and_left_out() -> None:
    found = trainings(DEPTH)
    found["6l"][0] |= dict.fromkeys(
        ("centre_of_mass", "centre_in_layers", "peak_rel", "peak_layer")
    )
    size = sizes_summary(found, **SETTINGS)["sizes"]["6l"]
    assert (size["trainings"], size["without_induction_heads"]) == (5, 1)
    assert size["centre_of_mass"]["mean"]["n"] == 4


def test_predictions_are_in_layers_and_of_each_size() -> None:
    rivals = {
        rival["name"]: rival for rival in sizes_summary(trainings(LAYER), **SETTINGS)["rivals"]
    }
    depth = rivals[DEPTH]
    expected = {name: depth["fitted"] * n - 0.5 for name, n in LAYERS.items()}
    assert depth["predicts"] == pytest.approx(expected)
    assert [*rivals[LAYER]["predicts"].values()] == pytest.approx([rivals[LAYER]["fitted"]] * 3)


def test_how_far_the_peak_lies_behind_the_previous_token_heads_is_counted_by_training() -> None:
    found = trainings(AFTER)
    found["8l"][1]["previous_token_layer"] = None
    sizes = sizes_summary(found, **SETTINGS)["sizes"]
    assert sizes["4l"]["peak_after_previous"]["values"] == [1.0] * 5
    assert sizes["8l"]["peak_after_previous"]["values"] == [1.0] * 4


def test_a_name_means_one_size() -> None:
    found = trainings(DEPTH)
    found["4l"][0]["n_layers"] = 5
    with pytest.raises(InputError, match=r"4l has \[4, 5\] layers: give trainings of one size"):
        sizes_summary(found, **SETTINGS)


def test_profiles_of_an_older_version_are_named() -> None:
    found = trainings(DEPTH)
    del found["4l"][0]["centre_in_layers"]
    with pytest.raises(InputError, match=r"profile_4l.json lacks `centre_in_layers`"):
        sizes_summary(found, **SETTINGS)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Folders of three runs, shaped as the pipeline's."""
    made = trainings(AFTER, n=3)
    reports = planted_answers.planted("pythia_topology")
    folders = []

    for seed in range(3):
        folder = tmp_path / str(seed)
        planted_answers.save(folder, reports)
        compared = load_json(folder / "metrics" / "multisize" / "multi_size.json")
        # The planted sizes' names, with the trainings' depths.
        for name, size in zip(compared["models"], LAYERS, strict=True):
            place = folder / "metrics" / "profile" / f"profile_{name}.json"
            save_json(place, load_json(place) | made[size][seed] | {"name": name})

        save_json(folder / "metrics" / "multisize" / "multi_size.json", compared | {"margin": 0.1})
        folders.append(folder)

    return folders


def test_answers_over_trainings_write_what_they_say_of_sizes(
    runs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "published"
    each = [part for folder in runs for part in ("--trainings", folder)]
    said = induct("answers", *each, "--out", out)
    assert (said.code, said.err) == (0, "")
    written = {"answers.json", "by_training.json", "sizes.json", "sizes.png"}
    assert {file.name for file in out.iterdir()} == written
    assert load_json(out / "answers.json")["centre_of_short"]["n"] == 3
    short = load_json(out / "sizes.json")["sizes"]["short"]
    assert short["n_layers"] == 4
    assert short["without_top_heads"]["values"] == [-0.61] * 3
    assert short["without_best_layer"]["values"] == [-0.97] * 3
    assert "3 trainings of each size: relative depth:" in said.out


def test_a_contrast_of_two_sizes_has_one_interval_wherever_it_is_said(
    runs: list[Path], tmp_path: Path
) -> None:
    """The headline number is the mean of each training's difference: the table's must be it."""
    ends: list[str] = []

    for folder in runs:
        place = folder / "metrics" / "multisize" / "multi_size.json"
        compared = load_json(place)
        ends = [list(compared["models"])[end] for end in (0, -1)]
        first, last = (
            load_json(folder / "metrics" / "profile" / f"profile_{name}.json") for name in ends
        )
        (pair,) = [pair for pair in compared["pairs"] if pair["models"] == ends]
        pair["centre_of_mass"]["difference"]["value"] = (
            last["centre_of_mass"]["value"] - first["centre_of_mass"]["value"]
        )
        save_json(place, compared)

    out = tmp_path / "published"
    induct("answers", *(part for run in runs for part in ("--trainings", run)), "--out", out)
    headline = load_json(out / "answers.json")["centre_difference"]
    pairs = load_json(out / "sizes.json")["centre_of_mass"]["pairs"]
    (said,) = [pair["difference"] for pair in pairs if pair["sizes"] == ends]

    assert {name: headline[name] for name in said} == said


def test_a_training_without_induction_heads_leaves_its_seed_out_of_its_pairs() -> None:
    """The other seeds are still compared with their own, not with what moved up."""
    found = trainings(DEPTH)
    whole = sizes_summary(found, **SETTINGS)["centre_of_mass"]["pairs"]
    found["6l"][0] |= dict.fromkeys(
        ("centre_of_mass", "centre_in_layers", "peak_rel", "peak_layer")
    )
    pairs = sizes_summary(found, **SETTINGS)["centre_of_mass"]["pairs"]

    assert [pair["difference"]["n"] for pair in pairs] == [4, 5, 4]
    assert pairs[1]["difference"] == whole[1]["difference"]
    centres = [[one["centre_of_mass"] for one in found[name]] for name in ("4l", "6l")]
    differences = [six["value"] - four["value"] for four, six in zip(*centres, strict=True) if six]
    assert pairs[0]["difference"]["value"] == pytest.approx(np.mean(differences))


def test_the_figure_shows_every_training_and_every_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = figures_saved(monkeypatch)
    report = sizes_summary(trainings(AFTER), **SETTINGS)
    figures_sizes.sizes(report, tmp_path / "sizes.png")
    found: Drawn = drawn["sizes"]
    assert "n = 5 trainings of each size" in found.words

    for axes, name in zip(found.figure.axes, ("centre_of_mass", "centre_in_layers"), strict=True):
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        shown = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in dots])
        values = [value for size in report["sizes"].values() for value in size[name]["values"]]
        assert sorted(shown) == pytest.approx(sorted(values))
        assert sum("rule" in str(line.get_label()) for line in axes.lines) == 3
