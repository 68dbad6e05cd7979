"""Interventions find the planted head and nothing else, each beside its controls."""

from typing import Any

import numpy as np
import pytest

import known_circuits as known
import small_project
from interp_core.errors import InputError
from interp_core.measures.scores import copy_behaviour
from interp_core.models.subject import Transformer
from interp_core.stimuli.prompts import Prompts
from pythia_topology.data import stimuli
from pythia_topology.intervene import (
    causal,
    check_sizes,
    first_prompts,
    head_name,
    random_sets,
    rank_heads,
)
from pythia_topology.measure_heads import score_arrays
from pythia_topology.params import PythiaTopology

ALL = known.N_LAYERS * known.N_HEADS


def settings(**changes: Any) -> PythiaTopology:
    wanted = {
        "task_types": ["spaced_pairs"],
        "period": 16,
        "causal_draws": 200,
        "causal_sequences": 8,
        "dose_k": [1, 2, 4],
    }
    return small_project.study(**(wanted | changes))


def planted_excess(subject: Transformer, params: PythiaTopology) -> tuple[Prompts, np.ndarray]:
    prompts = stimuli(subject, params)
    return prompts["repeated_tokens"], score_arrays(subject, prompts, params)[
        "excess_prefix_matching"
    ]


@pytest.fixture
def found(induction: Transformer) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `causal` reports of the planted circuit."""
    params = settings()
    prompts, excess = planted_excess(induction, params)
    return causal(induction, prompts, excess, params)


def test_the_planted_head_and_only_it_destroys_copying(
    found: tuple[dict[str, Any], dict[str, np.ndarray]],
) -> None:
    report, arrays = found
    chance = np.log(known.SIZE)
    assert report["top_heads"] == ["L1H2"]
    assert report["baseline_acc"] == 1
    assert report["ablated_top_acc"] < 0.1
    assert report["delta_top"] == pytest.approx(report["ablated_top_acc"] - 1)
    assert (report["ablated_rand_acc"], report["delta_rand"]) == (1, 0)
    assert (report["draws"], len(report["random_heads"]), report["n"]) == (200, 200, 8)
    assert report["p_value"] == pytest.approx(1 / 201)
    assert report["verdict"].startswith("copying needs them")
    for how in ("zero", "mean", "resample", "pattern_preserving"):
        loss = report["ablations"][how]["loss"]
        assert loss["top"] > 0.9 * chance
        assert loss["top_ci"][0] <= loss["top"] <= loss["top_ci"][1]
        assert (loss["random_mean"], loss["random_low"], loss["random_high"]) == pytest.approx(
            (0, 0, 0), abs=1e-5
        )
        assert loss["p"] == pytest.approx(1 / 201)
    assert report["ablations"]["zero"]["loss"]["top"] == pytest.approx(chance, abs=0.01)
    single = np.argwhere(arrays["loss_effect"] > 0.1)
    assert {tuple(head) for head in single} == {known.PREVIOUS_TOKEN_HEAD, known.INDUCTION_HEAD}


def test_keeping_the_patterns_changes_nothing_where_no_later_head_reads(
    found: tuple[dict[str, Any], dict[str, np.ndarray]],
) -> None:
    ablations = found[0]["ablations"]
    for measure in ("loss", "accuracy"):
        frozen, free = (ablations[how][measure] for how in ("pattern_preserving", "mean"))
        assert frozen["top"] == pytest.approx(free["top"], abs=1e-4)


def test_with_patterns_kept_the_previous_token_head_is_not_needed(induction: Transformer) -> None:
    """It works through the induction head's pattern alone: the pattern-preserving ablation tells
    that apart.
    """
    params = settings(causal_draws=4)
    prompts, _ = planted_excess(induction, params)
    previous = np.zeros((known.N_LAYERS, known.N_HEADS))
    previous[known.PREVIOUS_TOKEN_HEAD] = 1
    ablations = causal(induction, prompts, previous, params)[0]["ablations"]
    assert ablations["mean"]["accuracy"]["top"] < -0.8
    assert ablations["pattern_preserving"]["accuracy"]["top"] == 0


def test_the_dose_curve_falls_at_the_first_head_and_the_whole_layer_is_its_bound(
    found: tuple[dict[str, Any], dict[str, np.ndarray]],
) -> None:
    dose = found[0]["dose"]
    assert dose["k"] == [1, 2, 4]
    assert dose["whole_layer"]["layer"] == known.INDUCTION_HEAD[0]
    for measure, sign in (("accuracy", -1), ("loss", 1)):
        top = sign * np.array(dose[measure]["top"])
        bound = sign * dose["whole_layer"][measure]
        assert (top > 0.9 * bound).all()
        assert top[0] <= bound + 1e-6
        assert sign * dose[measure]["random_high"][0] == pytest.approx(0, abs=1e-5)


def test_ablation_leaves_text_without_repeats_alone(
    found: tuple[dict[str, Any], dict[str, np.ndarray]],
) -> None:
    text = found[0]["specificity"]
    copying = found[0]["ablations"]["mean"]["loss"]["top"]
    assert abs(text["top"]) < 0.05 * copying
    assert text["clean_loss"] == pytest.approx(np.log(known.SIZE), abs=0.01)
    assert text["p"] > 0.05
    assert text["n"] == 8


def test_the_model_is_left_as_it_was(induction: Transformer) -> None:
    params = settings(causal_draws=4)
    prompts, excess = planted_excess(induction, params)
    before = induction.trunk(induction.ids(prompts.tokens))
    causal(induction, prompts, excess, params)
    assert induction.trunk(induction.ids(prompts.tokens)).equal(before)
    assert copy_behaviour(induction, prompts)[0].mean() == 1


def test_heads_that_do_nothing_are_no_more_than_random_heads(toy: Transformer) -> None:
    params = small_project.study(causal_draws=40)
    prompts, excess = planted_excess(toy, params)
    report, _ = causal(toy, prompts, excess, params)
    assert abs(report["ablations"]["mean"]["accuracy"]["top"]) < 0.1
    assert 1 / 41 <= report["p_value"] <= 1


def test_the_same_seed_gives_the_same_report(toy: Transformer) -> None:
    prompts, excess = planted_excess(toy, small_project.study())
    first, again, other = (
        causal(toy, prompts, excess, small_project.study(seed=seed, causal_draws=12))
        for seed in (0, 0, 1)
    )
    assert first[0] == again[0]
    assert first[0]["random_heads"] != other[0]["random_heads"]


def test_nothing_is_ablated_before_it_is_known_that_there_is_text(
    induction: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = settings(causal_sequences=2000)
    prompts, excess = planted_excess(induction, params)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("ablated first")

    monkeypatch.setattr("pythia_topology.intervene.ablation_effects", never)
    with pytest.raises(InputError, match=r"the text has .* 2000 wanted"):
        causal(induction, prompts, excess, params)


# Random sets


@pytest.mark.parametrize("k", [1, 2, 3])
def test_random_sets_are_of_the_same_layers_and_never_hold_a_top_head(k: int) -> None:
    top = [(1, 0), (1, 3), (4, 2)]
    sets = random_sets(top, (6, 8), k, 300, np.random.default_rng(0))
    assert len(sets) == 300
    for heads in sets:
        assert sorted(layer for layer, _ in heads) == sorted(layer for layer, _ in top[:k])
        assert len(set(heads)) == k
        assert not set(heads) & set(top)


def test_every_free_head_of_the_layer_is_drawn_equally_often() -> None:
    sets = random_sets([(1, 0)], (3, 5), 1, 4000, np.random.default_rng(1))
    counts = np.bincount([heads[0][1] for heads in sets], minlength=5)
    assert counts[0] == 0
    assert np.abs(counts[1:] - 1000).max() < 5 * np.sqrt(1000)


def test_a_full_layer_sends_the_draw_to_its_neighbours() -> None:
    top = [(2, head) for head in range(3)]
    layers = [
        layer
        for heads in random_sets(top, (5, 3), 3, 200, np.random.default_rng(2))
        for layer, _ in heads
    ]
    assert set(layers) == {1, 3}
    assert 200 < layers.count(1) < 400


def test_random_sets_follow_their_generator() -> None:
    drawn = [
        random_sets([(0, 0)], (2, 9), 3, 20, np.random.default_rng(seed)) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


# Small parts


def test_ranking_is_by_score_with_ties_in_order() -> None:
    scores = np.array([[0.1, 0.5, 0.1], [0.9, 0.5, -1.0]])
    assert rank_heads(scores) == [(1, 0), (0, 1), (1, 1), (0, 0), (0, 2), (1, 2)]
    assert [head_name(head) for head in rank_heads(scores)[:2]] == ["L1H0", "L0H1"]


def test_first_prompts_keep_their_pairs(toy: Transformer) -> None:
    prompts = stimuli(toy, small_project.study())["names"]
    few = first_prompts(prompts, 5)
    assert len(few.tokens) == len(few.control) == len(few.lengths) == 5
    assert set(few.pairs.batch) == set(range(5))
    assert (
        few.tokens[few.pairs.batch, few.pairs.query]
        == few.tokens[few.pairs.batch, few.pairs.earlier]
    ).all()
    assert len(first_prompts(prompts, 10**6).pairs) == len(prompts.pairs)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"causal_top_k": ALL + 1}, r"causal_top_k \(--topk\) is 9, but the model has 8 heads"),
        ({"causal_random_k": ALL + 1}, "causal_random_k is 9, but the model has 8 heads"),
        ({"causal_top_k": 5, "causal_random_k": 4}, "5 top and 4 random heads are more than its 8"),
    ],
)
def test_more_heads_than_there_are_is_refused(
    changes: dict[str, int], says: str, planted: Transformer
) -> None:
    with pytest.raises(InputError, match=says):
        check_sizes(planted, settings(**changes))
    check_sizes(planted, settings(causal_top_k=4, causal_random_k=4, dose_k=[1, 24]))
