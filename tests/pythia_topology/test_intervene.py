"""Interventions find the planted head and nothing else, each beside its controls."""

from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import known_circuits as known
import small_project
from interp_core.errors import InputError
from interp_core.measures.scores import copy_behaviour
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import Transformer
from interp_core.statistics.heads import Head
from interp_core.stimuli.prompts import Prompts
from interp_core.training import shares
from interp_core.training.shares import Elsewhere, dealing
from pythia_topology.data import first_prompts, stimuli
from pythia_topology.intervene import causal
from pythia_topology.intervene_controls import (
    Roles,
    check_sizes,
    controls_of,
    rank_heads,
    say_expected,
)
from pythia_topology.intervene_heads import recall
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


INDUCTION, WRITER = Head(*known.INDUCTION_HEAD), Head(*known.PREVIOUS_TOKEN_HEAD)


def planted_roles(subject: Transformer, params: PythiaTopology) -> tuple[Prompts, Roles]:
    """The scores' own ranking, with the circuit as it was planted."""
    prompts = stimuli(subject, params)
    excess = score_arrays(subject, prompts, params)["excess_prefix_matching"]
    return prompts["repeated_tokens"], Roles(excess, [INDUCTION], [WRITER])


@pytest.fixture
def found(induction: Transformer) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `causal` reports of the planted circuit."""
    params = settings()
    prompts, roles = planted_roles(induction, params)
    return causal(induction, prompts, roles, params)


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
    for how in ("zero", "mean", "resample", "pattern_preserving"):
        loss = report["ablations"][how]["loss"]
        assert loss["top"]["value"] > 0.9 * chance
        assert loss["top"]["low"] <= loss["top"]["value"] <= loss["top"]["high"]
        random = loss["outside"]["random"]
        assert (random["value"], random["low"], random["high"]) == pytest.approx(
            (0, 0, 0), abs=1e-5
        )
    zero = report["ablations"]["zero"]["loss"]["top"]["value"]
    assert zero == pytest.approx(chance, abs=0.01)
    single = np.argwhere(arrays["loss_effect"] > 0.1)
    assert {tuple(head) for head in single} == {known.PREVIOUS_TOKEN_HEAD, known.INDUCTION_HEAD}


def test_few_sets_allow_no_test_however_many_draws_are_asked_for(
    found: tuple[dict[str, Any], dict[str, np.ndarray]],
) -> None:
    """All but two heads are outside the circuit: as many sets of one, though 200 are asked for."""
    report, _ = found
    n = ALL - 2
    assert (report["draws"], len(report["random_heads"]), report["n"]) == (n, n, 8)
    assert report["p_value"] is None
    assert report["verdict"].startswith(f"no test possible: {n} distinct random sets")
    words = report["controls"]["outside"]
    assert words == f"all {n} distinct sets of heads outside the circuit, from L0, L1"
    for measures in report["ablations"].values():
        assert measures["loss"]["outside"]["p"] is None
        assert measures["accuracy"]["layer_matched"]["random"]["n"] == 3


def test_with_enough_sets_the_planted_heads_are_needed(induction: Transformer) -> None:
    """Sets of three of the heads outside the circuit: twenty, the fewest that a test needs."""
    params = settings(causal_top_k=1, causal_random_k=3, causal_draws=200)
    prompts, roles = planted_roles(induction, params)
    report, _ = causal(induction, prompts, roles, params)
    n = comb(ALL - 2, 3)
    assert n >= 20
    assert report["draws"] == n == len({tuple(one) for one in report["random_heads"]})
    circuit = {str(INDUCTION), str(WRITER)}
    assert not any(circuit & {*one} for one in report["random_heads"])
    assert report["p_value"] == pytest.approx(1 / (1 + n))
    assert report["verdict"].startswith("copying needs them")


def test_without_heads_outside_the_circuit_there_is_no_control(induction: Transformer) -> None:
    params = settings(causal_draws=4)
    prompts, roles = planted_roles(induction, params)
    everyone = replace(roles, induction=roles.ranked)
    report, _ = causal(induction, prompts, everyone, params)
    assert (report["p_value"], report["delta_rand"], report["ablated_rand_acc"]) == (None,) * 3
    assert report["verdict"].startswith("no control: no set of so many heads is outside")
    assert report["ablations"]["mean"]["loss"]["layer_matched"]["random"]["n"] == 3
    assert report["dose"]["accuracy"]["random_mean"] == [None] * 3


def test_keeping_the_patterns_changes_nothing_where_no_later_head_reads(
    found: tuple[dict[str, Any], dict[str, np.ndarray]],
) -> None:
    ablations = found[0]["ablations"]
    for measure in ("loss", "accuracy"):
        frozen, free = (ablations[how][measure] for how in ("pattern_preserving", "mean"))
        assert frozen["top"]["value"] == pytest.approx(free["top"]["value"], abs=1e-4)


def test_with_patterns_kept_the_previous_token_head_is_not_needed(induction: Transformer) -> None:
    """It works through the induction head's pattern alone: the pattern-preserving ablation tells
    that apart.
    """
    params = settings(causal_draws=4)
    prompts, roles = planted_roles(induction, params)
    previous = np.zeros((known.N_LAYERS, known.N_HEADS))
    previous[known.PREVIOUS_TOKEN_HEAD] = 1
    report, _ = causal(induction, prompts, replace(roles, excess=previous), params)
    ablations = report["ablations"]
    assert ablations["mean"]["accuracy"]["top"]["value"] < -0.8
    assert ablations["pattern_preserving"]["accuracy"]["top"]["value"] == 0


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
    copying = found[0]["ablations"]["mean"]["loss"]["top"]["value"]
    assert abs(text["top"]["value"]) < 0.05 * copying
    assert text["clean_loss"] == pytest.approx(np.log(known.SIZE), abs=0.01)
    assert text["n"] == 8


def test_the_model_is_left_as_it_was(induction: Transformer) -> None:
    params = settings(causal_draws=4)
    prompts, roles = planted_roles(induction, params)
    before = induction.trunk(induction.ids(prompts.tokens))
    causal(induction, prompts, roles, params)
    assert induction.trunk(induction.ids(prompts.tokens)).equal(before)
    assert copy_behaviour(induction, prompts)[0].mean() == 1


def test_heads_that_do_nothing_are_no_more_than_random_heads(toy: Transformer) -> None:
    params = small_project.study(causal_draws=40, causal_top_k=2, causal_random_k=3)
    prompts, roles = planted_roles(toy, params)
    report, _ = causal(toy, prompts, replace(roles, induction=[], writers=[]), params)
    assert abs(report["ablations"]["mean"]["accuracy"]["top"]["value"]) < 0.1
    assert not report["verdict"].startswith("copying needs them")


def test_the_same_seed_gives_the_same_report(toy: Transformer) -> None:
    prompts, roles = planted_roles(toy, small_project.study())
    first, again, other = (
        causal(toy, prompts, roles, small_project.study(seed=seed, causal_draws=2))
        for seed in (0, 0, 1)
    )
    assert first[0] == again[0]
    assert first[0]["random_heads"] != other[0]["random_heads"]


def test_nothing_is_ablated_before_it_is_known_that_there_is_text(
    induction: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = settings(causal_sequences=2000)
    prompts, roles = planted_roles(induction, params)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("ablated first")

    monkeypatch.setattr("pythia_topology.intervene_heads.ablation_effects", never)
    with pytest.raises(InputError, match=r"the text has .* 2000 wanted"):
        causal(induction, prompts, roles, params)


def test_heads_that_are_dealt_out_have_the_same_effects_to_the_bit(
    toy: Transformer, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = settings(causal_draws=12, causal_top_k=2, causal_random_k=2)
    prompts, roles = planted_roles(toy, params)
    expected, whole = causal(toy, prompts, roles, params)

    monkeypatch.setattr(shares, "_size", lambda *_: 2)
    spec = ModelSpec(source="local", path=project / "models" / "toy")
    kept = tmp_path / "kept"
    with dealing(Elsewhere(spec, "toy", toy.hash, "cpu", "float32", "own", params.threads, kept)):
        report, arrays = causal(toy, prompts, roles, params)

    assert len(list(kept.iterdir())) > 7
    assert report == expected
    for name, values in whole.items():
        np.testing.assert_array_equal(arrays[name], values, strict=True)


# Random sets


def _roles(shape: tuple[int, int]) -> Roles:
    """Heads of layer 2 are induction heads, the first two of layer 1 write for them."""
    excess = np.random.default_rng(0).random(shape)
    induction = [Head(2, head) for head in range(shape[1])]
    return Roles(excess, induction, [Head(1, 0), Head(1, 1)])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_outside_sets_hold_no_induction_head_and_no_writer(k: int) -> None:
    roles = _roles((5, 4))
    top = [Head(2, 0), Head(2, 3)]
    controls = controls_of(top, roles, np.random.default_rng(0), size=k, draws=300)

    for heads in controls.outside.sets:
        assert len({*heads}) == k
        assert not {*heads} & {*roles.induction, *roles.writers}

    assert len({frozenset(one) for one in controls.outside.sets}) == len(controls.outside.sets)
    assert controls.outside.layers == [0, 1, 3, 4]
    assert controls.outside.distinct == comb(14, k)
    assert "from L0, L1, L3, L4" in controls.outside_words


def test_layer_matched_sets_may_hold_the_circuit_s_other_heads_and_never_the_top() -> None:
    roles, top = _roles((5, 4)), [Head(2, 0), Head(2, 3)]
    controls = controls_of(top, roles, np.random.default_rng(0), size=2, draws=300)
    assert controls.layer_matched.sets == [(Head(2, 1), Head(2, 2))]
    assert controls.sets == [*controls.layer_matched.sets, *controls.outside.sets]


def test_first_order_recall_counts_the_heads_that_matter_most() -> None:
    exact = np.array([[5.0, 4.0], [3.0, 0.0]])
    estimate = np.array([[9.0, 0.0], [7.0, 8.0]])
    found = recall(exact, estimate, [1, 2, 4, 8])
    assert found["k"] == [1, 2, 4]
    assert found["recall"] == [1.0, 0.5, 1.0]
    assert found["chance"] == [0.25, 0.5, 1.0]


# Small parts


def test_ranking_is_by_score_with_ties_in_order() -> None:
    scores = np.array([[0.1, 0.5, 0.1], [0.9, 0.5, -1.0]])
    assert rank_heads(scores) == [(1, 0), (0, 1), (1, 1), (0, 0), (0, 2), (1, 2)]
    assert [str(head) for head in rank_heads(scores)[:2]] == ["L1H0", "L0H1"]


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


@pytest.mark.parametrize(("draws", "says"), [(20, False), (10**6, True)])
def test_ablations_of_over_a_minute_say_so_before(
    induction: Transformer, draws: int, says: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    params = settings(causal_draws=draws)
    prompts = stimuli(induction, params)["repeated_tokens"]
    say_expected(induction, prompts, params, single=8)
    said = capsys.readouterr().out
    assert said.startswith("induction: ablating ") == says
    assert said.count("\n") == says
