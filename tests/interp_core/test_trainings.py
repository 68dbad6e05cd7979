"""Claims over trainings: scipy as the oracle, errors at their rate, planted rivals found."""

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from interp_core.errors import InputError
from interp_core.statistics.trainings import (
    RIVALS,
    Training,
    compare_rivals,
    holm,
    jackknife,
    sizes_alike,
)

DEPTH, LAYER, AFTER = RIVALS


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def seeds_of(
    rng: np.random.Generator, means: dict[str, float], n: int, noise: float
) -> dict[str, list[float]]:
    return {size: (mean + noise * rng.normal(size=n)).tolist() for size, mean in means.items()}


def test_a_pair_is_tested_as_scipys_paired_test_does() -> None:
    first, second, margin = [0.41, 0.44, 0.40, 0.47], [0.49, 0.45, 0.52, 0.55], 0.15
    found = sizes_alike({"a": first, "b": second}, margin=margin, alpha=0.05).pairs[0]
    theirs: Any = scipy_stats.ttest_rel(second, first)
    ends = theirs.confidence_interval(0.95)
    assert (found.difference.n, found.difference.ends) == (
        4,
        pytest.approx((ends.low, ends.high), rel=1e-9),
    )

    shifted = (("greater", np.add(second, margin)), ("less", np.subtract(second, margin)))
    one_sided = [
        np.array(scipy_stats.ttest_rel(side, first, alternative=alternative))[1]
        for alternative, side in shifted
    ]
    assert found.p == found.p_corrected == pytest.approx(max(one_sided), rel=1e-9)
    inner = theirs.confidence_interval(0.90)
    assert (found.low, found.high) == pytest.approx((inner.low, inner.high), rel=1e-9)


def test_what_a_seed_does_to_all_sizes_is_no_difference_between_them() -> None:
    """Seeds lie .4 apart, and sizes hardly at all in each: Welch's test would see nothing."""
    of_seed = np.array([0.2, 0.6, 0.4, 0.3])
    values = {"a": of_seed.tolist(), "b": (of_seed + np.array([0.01, 0.0, 0.02, 0.01])).tolist()}
    assert sizes_alike(values, margin=0.1, alpha=0.05).verdict == "equivalent within 0.1"


def test_a_training_without_a_value_takes_its_seed_out_of_its_pairs_alone() -> None:
    values = {"a": [0.4, 0.5, 0.6], "b": [0.5, None, 0.8], "c": [0.4, 0.5, 0.7]}
    pairs = sizes_alike(values, margin=0.1, alpha=0.05).pairs
    assert [pair.difference.n for pair in pairs] == [2, 3, 2]
    assert pairs[0].difference.value == pytest.approx(0.15)

    apart: dict[str, list[float | None]] = {"a": [0.4, 0.5, None], "b": [None, 0.5, 0.6]}
    few = "not enough trainings: fewer than 2 seeds of both a and b"
    assert sizes_alike(apart, margin=0.1, alpha=0.05).verdict == few

    with pytest.raises(InputError, match="seed by seed, and there are 2 of a, 3 of b trainings"):
        sizes_alike({"a": [0.4, 0.5], "b": [0.4, 0.5, 0.6]}, margin=0.1, alpha=0.05)


def test_ps_are_corrected_as_holm_does() -> None:
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([0.04] * 8) == pytest.approx([0.32] * 8)
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_among_pairs_that_differ_by_the_margin_holm_calls_hardly_any_equivalent() -> None:
    rng, hits, raw = _rng(7), 0, 0

    for _ in range(300):
        values = seeds_of(rng, {"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.3}, 5, 0.03)
        pairs = sizes_alike(values, margin=0.1, alpha=0.05).pairs
        hits += any(pair.p_corrected <= 0.05 for pair in pairs)
        raw += any(pair.p <= 0.05 for pair in pairs)

    assert hits / 300 <= 0.088  # .05 and three standard errors
    assert raw / 300 > 0.1


@pytest.mark.parametrize(
    ("means", "noise", "verdict"),
    [
        ({"a": 0.4, "b": 0.4, "c": 0.41}, 0.01, "equivalent within 0.1"),
        ({"a": 0.4, "b": 0.4, "c": 0.65}, 0.01, "different"),
        ({"a": 0.4, "b": 0.42, "c": 0.44}, 0.12, "not decided"),
    ],
)
def test_verdicts_over_seeds(means: dict[str, float], noise: float, verdict: str) -> None:
    found = sizes_alike(seeds_of(_rng(1), means, 5, noise), margin=0.1, alpha=0.05)
    assert found.verdict == verdict
    assert found.p is not None
    assert (found.p <= 0.05) == verdict.startswith("equivalent")
    entry = json.loads(json.dumps(found.to_json()))
    assert set(entry["pairs"][0]["difference"]) == {"value", "low", "high", "n", "unit"}


def test_sizes_at_the_margin_and_sizes_that_agree_are_misjudged_at_most_at_alpha() -> None:
    rng = _rng(2)
    at_margin = [
        sizes_alike(seeds_of(rng, {"a": 0.0, "b": 0.1}, 5, 0.04), margin=0.1, alpha=0.05).verdict
        for _ in range(600)
    ]
    same = [
        sizes_alike(
            seeds_of(rng, {"a": 0.0, "b": 0.0, "c": 0.0}, 5, 0.3), margin=0.1, alpha=0.05
        ).verdict
        for _ in range(600)
    ]
    assert np.mean([verdict.startswith("equivalent") for verdict in at_margin]) <= 0.08
    assert same.count("different") / len(same) <= 0.08


@pytest.mark.parametrize("values", [{"a": [0.4, 0.5], "b": [0.4]}, {"a": [0.4, 0.5]}])
def test_one_training_of_a_size_is_not_enough_and_no_error(values: dict[str, list[float]]) -> None:
    found = sizes_alike(values, margin=0.1, alpha=0.05)
    assert (found.p, found.pairs, found.widest) == (None, [], None)
    assert found.verdict.startswith("not enough trainings")
    few = [Training(size, 4, value, 0.0) for size, seeds in values.items() for value in seeds]
    assert compare_rivals(few).verdict == found.verdict


def test_sizes_differ_at_the_level_that_is_asked_for() -> None:
    values = {"a": [0.0, 1.0, 2.0], "b": [1.0, 2.6, 2.9]}
    theirs: Any = scipy_stats.ttest_rel(values["a"], values["b"])
    assert 0.01 < theirs.pvalue < 0.05
    assert sizes_alike(values, margin=0.1, alpha=0.05).verdict == "different"
    assert sizes_alike(values, margin=0.1, alpha=0.01).verdict == "not decided"


def planted(rng: np.random.Generator, rival: str, noise: float, seeds: int = 5) -> list[Training]:
    """Models of 2 to 8 layers whose previous-token heads wander; centres follow one rival."""
    found = []
    for layers in (2, 3, 4, 6, 8):
        for _ in range(seeds):
            previous = layers * 0.3 + rng.normal()
            centre = {DEPTH: 0.55 * layers - 0.5, LAYER: 2.0, AFTER: previous + 1.2}[rival]
            found.append(Training(f"{layers}l", layers, centre + noise * rng.normal(), previous))
    return found


@pytest.mark.parametrize("rival", list(RIVALS))
def test_a_planted_rival_is_found(rival: str) -> None:
    found = compare_rivals(planted(_rng(4), rival, 0.2))
    assert found.verdict == rival
    best = found.rivals[0]
    assert best.fitted == pytest.approx({DEPTH: 0.55, LAYER: 2.0, AFTER: 1.2}[rival], abs=0.1)
    assert best.residual == pytest.approx(0.2, abs=0.06)
    assert best.prediction.ends is not None
    assert best.prediction.ends[0] <= 0.2 <= best.prediction.ends[1]
    assert best.behind is None
    for other in found.rivals[1:]:
        assert other.behind is not None
        worse = other.prediction.value - best.prediction.value
        assert other.behind.value == pytest.approx(worse)
    assert json.loads(json.dumps(found.to_json()))["rivals"][1]["behind"]["unit"] == "trainings"


def test_rivals_that_predict_alike_are_not_decided() -> None:
    """One previous-token layer for all: constant layer and constant distance are one thing."""
    rng, verdicts = _rng(5), []
    for _ in range(200):
        sizes = [(layers, seed) for layers in (4, 6, 8) for seed in range(4)]
        rows = [
            Training(f"{n}l", n, 2 + 0.3 * rng.normal(), 1 + 0.02 * rng.normal()) for n, _ in sizes
        ]
        verdicts.append(compare_rivals(rows).verdict)
    assert np.mean([verdict.startswith("not decided") for verdict in verdicts]) >= 0.9


def test_prediction_leaves_the_size_out() -> None:
    """Two sizes, no noise: a layer fitted on one misses the other by their whole distance."""
    rows = [
        Training("a", 4, 1.0, 0.0),
        Training("a", 4, 1.0, 0.0),
        Training("b", 8, 3.0, 0.0),
        Training("b", 8, 3.0, 0.0),
    ]
    found = {rival.name: rival for rival in compare_rivals(rows).rivals}
    assert found[LAYER].prediction.value == pytest.approx(2.0)
    assert found[LAYER].residual == pytest.approx(1.0)


def test_the_jackknife_of_a_mean_of_means_is_its_standard_error() -> None:
    values, sizes = np.array([1.0, 2.0, 4.0, 5.0, 9.0]), np.array(["a", "a", "a", "b", "b"])

    def mean_of_means(kept: np.ndarray) -> float:
        return float(np.mean([values[kept & (sizes == size)].mean() for size in "ab"]))

    found = jackknife(mean_of_means, sizes)
    parts = [values[sizes == size].var(ddof=1) / (sizes == size).sum() / 4 for size in "ab"]
    df = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2)
    reach = scipy_stats.t.ppf(0.975, df) * np.sqrt(sum(parts))
    assert found.ends == pytest.approx((found.value - reach, found.value + reach))
    with pytest.raises(InputError, match="train it with another seed"):
        jackknife(lambda kept: 0.0, np.array(["a", "b", "b"]))
