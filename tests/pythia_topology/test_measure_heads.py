"""Scores of the hand-built circuits are what was planted, and nothing else scores."""

import numpy as np
import pytest

import known_circuits as known
import small_project
from interp_core.models.subject import Transformer
from pythia_topology.data import stimuli
from pythia_topology.measure_heads import score_arrays
from pythia_topology.measure_layer_profile import evidence, find_induction_heads
from pythia_topology.params import PythiaTopology

FAMILIES = ["repeated_tokens", "spaced_pairs", "natural_repeats"]
Arrays = dict[str, np.ndarray]


def settings(**changes: object) -> PythiaTopology:
    return small_project.study(task_types=FAMILIES[1:], period=16, **changes)


def scores(subject: Transformer, **changes: object) -> Arrays:
    params = settings(**changes)
    return score_arrays(subject, stimuli(subject, params), params)


def named(arrays: Arrays, family: str, score: str) -> np.ndarray:
    return arrays[score if family == "repeated_tokens" else f"{family}/{score}"]


def elsewhere(values: np.ndarray, *heads: tuple[int, int]) -> np.ndarray:
    """All heads but the planted ones."""
    left = np.ones(values.shape, dtype=bool)
    for head in heads:
        left[head] = False
    return values[left]


def words(arrays: Arrays, family: str) -> tuple[str, list[tuple[int, ...]]]:
    found = find_induction_heads(
        evidence(arrays, family),
        np.random.default_rng(0),
        alpha=0.01,
        draws=1000,
        smallest_effect=0.05,
    )
    return found.words, [tuple(int(i) for i in head) for head in np.argwhere(found.heads)]


def test_the_planted_head_scores_one_and_every_other_head_about_nothing(
    induction: Transformer,
) -> None:
    arrays = scores(induction)
    for family in FAMILIES:
        for score in ("prefix_matching", "excess_prefix_matching"):
            values = named(arrays, family, score)
            assert values[known.INDUCTION_HEAD] == pytest.approx(1.0, abs=1e-5)
            assert named(arrays, family, f"{score}_low")[known.INDUCTION_HEAD] == pytest.approx(
                1.0, abs=1e-5
            )
        assert (
            np.abs(
                elsewhere(named(arrays, family, "excess_prefix_matching"), known.INDUCTION_HEAD)
            ).max()
            < 1e-4
        )
        assert named(arrays, family, "previous_token")[known.PREVIOUS_TOKEN_HEAD] == pytest.approx(
            1.0, abs=1e-5
        )
        assert named(arrays, family, "duplicate_token")[known.INDUCTION_HEAD] < 1e-5
        assert words(arrays, family) == ("1 induction head", [known.INDUCTION_HEAD])


def test_the_planted_head_copies_and_writes_its_target(induction: Transformer) -> None:
    arrays = scores(induction)
    for score, least in (
        ("copying", 0.9),
        ("copying_empirical", 5.0),
        ("direct_logit_attribution", 30.0),
    ):
        assert arrays[score][known.INDUCTION_HEAD] > least
        assert elsewhere(arrays[score], known.INDUCTION_HEAD).max() < 0.1 * least


def test_a_duplicate_token_head_is_no_induction_head(duplicate: Transformer) -> None:
    arrays = scores(duplicate)
    for family in FAMILIES:
        assert named(arrays, family, "duplicate_token")[
            known.DUPLICATE_TOKEN_HEAD
        ] == pytest.approx(1.0, abs=1e-5)
        assert named(arrays, family, "prefix_matching")[known.DUPLICATE_TOKEN_HEAD] < 1e-5
        assert np.abs(named(arrays, family, "excess_prefix_matching")).max() < 1e-4
        assert words(arrays, family) == ("no induction heads", [])


def test_copying_is_perfect_on_prompts_and_absent_on_their_controls(
    induction: Transformer, duplicate: Transformer
) -> None:
    arrays, without = scores(induction), scores(duplicate)
    for family in FAMILIES:
        assert (arrays[f"prompts/{family}/accuracy"] == 1).all()
        assert arrays[f"prompts/{family}/loss"].max() < 1e-5
        assert arrays[f"prompts/{family}/control_accuracy"].mean() < 0.05  # 1 of 64 by chance
        assert arrays[f"prompts/{family}/control_loss"].mean() > np.log(known.SIZE) - 0.1
        assert without[f"prompts/{family}/accuracy"].max() == 0


def test_a_model_that_knows_nothing_is_at_chance_on_prompts_and_controls(toy: Transformer) -> None:
    params = small_project.study(n_sequences=64, task_types=["spaced_pairs"])
    arrays = score_arrays(toy, stimuli(toy, params), params)
    for family in ("repeated_tokens", "spaced_pairs"):
        for score in ("accuracy", "control_accuracy"):
            assert arrays[f"prompts/{family}/{score}"].mean() < 0.03  # 1 of 512 by chance
        difference = arrays[f"prompts/{family}/loss"] - arrays[f"prompts/{family}/control_loss"]
        assert abs(difference.mean()) < 5 * difference.std() / np.sqrt(len(difference))


def test_the_untrained_null_is_the_same_architecture_and_scores_nothing(
    induction: Transformer,
) -> None:
    arrays = scores(induction)
    untrained = arrays["untrained/excess_prefix_matching"]
    assert untrained.shape == (12, known.N_LAYERS, known.N_HEADS)
    assert np.abs(untrained.mean(axis=0)).max() < 0.02
    assert (scores(induction)["untrained/excess_prefix_matching"] == untrained).all()


def test_the_model_is_left_as_it_was(induction: Transformer) -> None:
    params = settings()
    prompts = stimuli(induction, params)["repeated_tokens"]
    before = induction.trunk(induction.ids(prompts.tokens))
    score_arrays(induction, {"repeated_tokens": prompts}, params)
    assert induction.trunk(induction.ids(prompts.tokens)).equal(before)


def test_scores_do_not_depend_on_how_prompts_are_batched(toy: Transformer) -> None:
    params = small_project.study(task_types=["names"])
    prompts = stimuli(toy, params)
    whole = score_arrays(toy, prompts, params)
    parts = score_arrays(toy, prompts, small_project.study(task_types=["names"], batch_size=5))
    assert whole.keys() == parts.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
