"""The tools on a circuit that we know: they find it, name its parts, and break it where it can be
broken.
"""

from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch

from cursive_circuits.data import Words
from cursive_circuits.data_stimuli import Stimuli, synthetic
from cursive_circuits.intervene import (
    ablation_report,
    copy_losses,
    copying_verdict,
    direct_harms,
    harms,
    mean_outputs,
)
from cursive_circuits.intervene_paths import path_effects, path_report
from cursive_circuits.intervene_redraw import continued, redrawn_words
from cursive_circuits.intervene_values import value_accuracy, value_report
from cursive_circuits.measure_circuits import folded
from cursive_circuits.measure_composition import compositions, get_composition_score
from cursive_circuits.measure_drawings import (
    attention_over_ink,
    of_strokes,
    of_tokens,
    of_words,
)
from cursive_circuits.measure_heads import OFFSETS, attention_scores, head_report
from cursive_circuits.measure_samples import written
from cursive_circuits.params import CursiveCircuits, Interventions, Statistics
from cursive_circuits.run_directory import Trained
from interp_core.errors import InputError
from interp_core.measures.ablation import ablated
from interp_core.measures.paths import Cut, Reads, without
from planted_strokes import IDLE, INDUCTION, PAIR_BACK, PREVIOUS, TOKENS, planted
from small_strokes import random_model

SETTINGS = Interventions(
    prompts=24,
    top=1,
    draws=30,
    direct_prompts=16,
    dose=(1,),
    dose_draws=2,
    readers=1,
    path_prompts=8,
    seed=0,
)


@pytest.fixture(scope="module")
def model() -> Trained:
    return planted()


@pytest.fixture(scope="module")
def stimuli() -> Stimuli:
    return synthetic(TOKENS, pairs=7, n=24, rng=np.random.default_rng(3))


def test_the_induction_head_is_found_at_both_slots_and_nothing_else_is(
    model: Trained, stimuli: Stimuli, tests: Statistics
) -> None:
    arrays, report = head_report(
        attention_scores(model, stimuli, batch_size=10), tests, np.random.default_rng(0)
    )
    assert report["induction_heads"] == [str(INDUCTION)]
    assert report["relays"] == []
    assert (report["anywhere"]["head"], report["anywhere"]["offset"]) == (str(INDUCTION), 1)
    for score in (
        "prefix_matching",
        "prefix_matching_direction",
        "prefix_matching_radius",
        "next_pair",
    ):
        assert report["largest"][score]["head"] == str(INDUCTION)
        assert 0.85 < arrays[score][1, 0] < 1 + 1e-6
    assert report["largest"]["previous_token"]["head"] == str(PREVIOUS)
    assert arrays["previous_token"][0, 0] > 0.99
    profile = [arrays[f"offset/{offset:+d}"][1, 0] for offset in OFFSETS]
    assert np.argmax(profile) == 5
    assert profile[5] > 0.85


def test_shuffled_pairs_before_the_second_copy_leave_nothing_to_find(
    model: Trained, tests: Statistics
) -> None:
    stimuli = synthetic(TOKENS, pairs=7, n=24, rng=np.random.default_rng(3))
    prompts = stimuli.prompts
    swapped = Stimuli(
        type(prompts)(
            prompts.family, prompts.control, prompts.control, prompts.pairs, prompts.lengths
        ),
        stimuli.text,
        stimuli.control_text,
    )
    _, report = head_report(
        attention_scores(model, swapped, batch_size=24), tests, np.random.default_rng(0)
    )
    assert report["induction_heads"] == []


def test_a_head_that_looks_at_the_earlier_occurrence_itself_is_no_induction_head(
    model: Trained, stimuli: Stimuli, tests: Statistics
) -> None:
    scores = attention_scores(model, stimuli, batch_size=24)
    scores["offset/+0"][:, IDLE.layer, IDLE.number] = 0.9
    _, report = head_report(scores, tests, np.random.default_rng(0))

    assert report["induction_heads"] == [str(INDUCTION)]
    assert report["relays"] == []
    assert report["anywhere"]["head"] == str(INDUCTION)


def test_copying_needs_the_circuit_and_nothing_else(model: Trained, stimuli: Stimuli) -> None:
    means = mean_outputs(model, stimuli, batch_size=24)
    clean = copy_losses(model, stimuli, batch_size=24).mean(axis=0)
    assert clean[0] < 0.4 < 1.0 < clean[1]
    for head, needed in ((INDUCTION, True), (PREVIOUS, True), (IDLE, False)):
        with ablated(model.model, {head.place: means[head]}):
            without = copy_losses(model, stimuli, batch_size=24).mean(axis=0)
        assert bool(without[0] - clean[0] > 1.0) is needed, head


def test_the_verdict_needs_matching_and_harm(stimuli: Stimuli, tests: Statistics) -> None:
    # Eleven layers of heads that do nothing: enough sets of others for a test.
    model = planted(layers=12)
    arrays, heads = head_report(
        attention_scores(model, stimuli, batch_size=24), tests, np.random.default_rng(0)
    )
    alone, report = ablation_report(
        model, stimuli, arrays["excess"], SETTINGS, tests, matching=[INDUCTION], batch_size=24
    )
    assert report["top"] == [str(INDUCTION)]
    assert alone["alone"][1, 0, 0, 0] > 1.0
    assert np.abs(alone["alone"][:, 1]).max() < 1e-4  # cross-attention writes nothing

    found = copying_verdict(heads, report, tests)
    assert found["induction"], found["verdict"]
    loose = tests.model_copy(update={"smallest_loss": 100.0})
    assert not copying_verdict(heads, report, loose)["induction"]
    assert copying_verdict(heads | {"induction_heads": []}, report, tests)["induction"] is False

    for changed in (
        {"against": report["direct"]["against"] | {"p": 0.06}},
        {"against": report["direct"]["against"] | {"p": None}},
        {"specific": report["direct"]["specific"] | {"low": -0.01}},
        {"copied": report["direct"]["copied"] | {"low": -0.01}},
    ):
        as_random = report | {"direct": report["direct"] | changed}
        assert not copying_verdict(heads, as_random, tests)["needed"], changed


def test_direct_harm_is_the_copying_heads_and_spares_what_feeds_it(
    model: Trained, stimuli: Stimuli
) -> None:
    means = mean_outputs(model, stimuli, batch_size=24)
    sets = [[INDUCTION], [PREVIOUS], [PAIR_BACK], [IDLE]]
    total = harms(model, stimuli, sets, means, batch_size=10, label="x").mean(axis=1)[:, 0]
    direct = direct_harms(model, stimuli, sets, means, batch_size=10).mean(axis=1)[:, 0]

    assert direct[0] == pytest.approx(total[0], abs=1e-6)  # the last layer feeds no other head
    assert total[1] > 1.0
    assert np.abs(direct[1:]).max() < 0.1 * direct[0]


def test_too_few_other_heads_are_no_test(
    model: Trained, stimuli: Stimuli, tests: Statistics
) -> None:
    excess = np.array([[0.0, 0.0], [0.9, 0.0]])
    _, report = ablation_report(
        model, stimuli, excess, SETTINGS, tests, matching=[INDUCTION], batch_size=24
    )
    for against in (report["direct"]["against"], report["mean"]["against"]):
        assert against["p"] is None
        assert against["says"].startswith("no test possible")
    assert report["direct"]["heads_to_draw_from"] == 3

    both = [INDUCTION, IDLE]
    _, report = ablation_report(
        model, stimuli, excess, SETTINGS, tests, matching=both, batch_size=24
    )
    assert report["direct"]["heads_to_draw_from"] == 2


def test_the_values_of_the_copying_head_are_found(model: Trained, stimuli: Stimuli) -> None:
    found = value_report(value_accuracy(model, stimuli, [INDUCTION], batch_size=10), [INDUCTION])
    assert found["most"] == "token"
    assert found["nothing"]["value"] > 0.8
    assert found["token"]["value"] < 0.3
    for source in ("heads", "mlps", "heads_and_mlps"):
        assert found[source]["value"] == found["nothing"]["value"]
    assert found["everything"]["value"] < 0.3


def test_the_circuit_is_first_in_k_composition_and_patching_confirms_it(
    model: Trained, stimuli: Stimuli, tests: Statistics
) -> None:
    arrays, report = compositions(model.model, distances=(1,), draws=20, seed=0)
    strongest = report["self_k"][0]
    assert (strongest["writer"], strongest["reader"]) in {
        (str(PREVIOUS), str(INDUCTION)),
        (str(PAIR_BACK), str(INDUCTION)),
    }
    assert report["self_k"][1]["reader"] == str(INDUCTION)
    assert strongest["z"] > 5
    effects = path_effects(model, stimuli.part(slice(0, 8)), {INDUCTION: 1}, batch_size=8)
    for writer in (PREVIOUS, PAIR_BACK):
        assert effects[INDUCTION, writer, "k"][:, 0].mean() < -0.15
    assert effects[INDUCTION, PAIR_BACK, "q"][:, 0].mean() == pytest.approx(0, abs=0.02)
    _, paths = path_report(effects, arrays, tests, np.random.default_rng(0))
    assert paths["k"]["by_weights"]["value"] < -0.15
    assert paths["v"]["measure"].startswith("logit")
    assert "logit through values" in paths["verdict"]


def test_where_no_path_does_anything_weights_agree_with_nothing(tests: Statistics) -> None:
    z = {f"self_{reads}_z": np.arange(16.0).reshape(2, 2, 2, 2) for reads in "qkv"}
    paths = {
        (INDUCTION, writer, reads): np.zeros((4, 2))
        for writer in (PREVIOUS, PAIR_BACK)
        for reads in get_args(Reads)
    }
    _, report = path_report(paths, z, tests, np.random.default_rng(0))

    assert [report[reads]["agreement"] for reads in get_args(Reads)] == [0.0, 0.0, 0.0]
    assert "not confirmed" in report["verdict"]


def test_z_scores_of_random_models_are_calibrated() -> None:
    z = []
    for seed in range(6):
        arrays, _ = compositions(
            random_model(TOKENS, seed=seed, layers=3, d_model=32, heads=4),
            distances=(1, 5),
            draws=40,
            seed=seed,
        )
        for name, values in arrays.items():
            if name.endswith("_z"):
                z.append(
                    np.concatenate(
                        [values[a, :, b].ravel() for a in range(3) for b in range(a + 1, 3)]
                    )
                )
    inside = np.mean(np.abs(np.concatenate(z)) < 2)
    assert 0.93 < inside < 0.98


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_composition_is_what_a_writer_gives_the_bilinear_form_that_a_reader_scores_by(
    positions: str,
) -> None:
    """|W_OV M| / (|W_OV| |M|) with M written out: where the query stands so many tokens later, its
    side is turned so far; values are not turned.
    """
    model = random_model(TOKENS, seed=3, layers=3, d_model=32, heads=4, positions=positions)
    distances = (1, 5)
    arrays, report = compositions(model, distances=distances, draws=2, seed=0)

    def turned_by(distance: int, query: torch.Tensor) -> torch.Tensor:
        if positions == "learned":
            return query
        halves = torch.view_as_complex(torch.stack(query.double().chunk(2, dim=-1), dim=-1))
        turns = halves * torch.exp(1j * distance * model.frequencies().double())
        return torch.cat([turns.real, turns.imag], dim=-1)

    for writer in ("self", "cross"):
        W_V, W_O = folded(model, 0, writer)[2][:, :-1], model.out_weights(0, writer)
        query, key, value = (part[:, :-1].double() for part in folded(model, 2, "self"))
        output = model.out_weights(2, "self").double()

        for reads in "qkv":
            expected = np.zeros((4, 4))
            for head, reader in product(range(4), range(4)):
                written = (W_V[head] @ W_O[head]).double()
                forms = {
                    "k": [key[reader] @ turned_by(d, query[reader]).T for d in distances],
                    "q": [turned_by(d, query[reader]) @ key[reader].T for d in distances],
                    "v": [value[reader] @ output[reader]],
                }[reads]
                expected[head, reader] = np.mean(
                    [get_composition_score(written, form.to(written)) for form in forms]
                )

            found = arrays[f"{writer}_{reads}_score"]
            np.testing.assert_allclose(found[0, :, 2], expected, rtol=1e-4)

            # Three pairs of layers in which the writer comes first, sixteen pairs of heads each.
            pairs = report[f"{writer}_{reads}"]
            assert len(pairs) == 10
            earlier = np.concatenate(
                [
                    arrays[f"{writer}_{reads}_z"][a, :, b].ravel()
                    for a, b in ((0, 1), (0, 2), (1, 2))
                ]
            )
            assert [pair["z"] for pair in pairs] == sorted(earlier.tolist(), reverse=True)[:10]


def test_fewer_pairs_than_are_asked_for_are_all_listed_and_no_others() -> None:
    report = compositions(random_model(TOKENS, seed=1), distances=(1,), draws=2, seed=0)[1]
    for kind in ("self_k", "cross_v"):
        layers = [(pair["writer"][:2], pair["reader"][:2]) for pair in report[kind]]
        assert layers == [("L0", "L1")] * 4


def test_taking_nothing_out_changes_nothing(model: Trained, stimuli: Stimuli) -> None:
    ids = torch.from_numpy(stimuli.prompts.tokens)
    with torch.no_grad():
        whole = model.model(ids).logits
        nothing = torch.zeros(*ids.shape, model.model.d_model)
        cut = Cut(INDUCTION.layer, "k", (INDUCTION.number,), nothing)
        with without(model.model, [cut], lambda: model.model(ids)):
            same = model.model(ids).logits
        with (
            pytest.raises(InputError, match="layers, from 0"),
            ablated(model.model, {INDUCTION._replace(layer=9).place: torch.zeros(1)}),
        ):
            pass
    torch.testing.assert_close(whole, same)


def test_a_copy_is_continued_by_the_circuit_and_not_without_it(
    model: Trained, stimuli: Stimuli
) -> None:
    without = {"none": [], "copying": [INDUCTION], "idle": [IDLE]}
    means = mean_outputs(model, stimuli, batch_size=24)
    found = continued(model, without, means, pairs=7, seed=1, temperature=1e-3)

    shares = {name: float(found[f"continued/copied/{name}"]) for name in without}
    assert shares["none"] == shares["idle"] == 1.0
    assert shares["copying"] < 0.5

    # Twice the segment, all but the first stroke of the second copy by the model's own hand.
    strokes = np.diff(found["continued/none"][:, :2], axis=0)
    np.testing.assert_allclose(strokes[-6:], strokes[-13:-7], atol=1e-6)


def test_what_a_continuation_that_ends_early_lacks_is_not_copied(stimuli: Stimuli) -> None:
    short = planted()
    means = mean_outputs(short, stimuli, batch_size=24)
    begins = len(TOKENS.opening) + 14 + 2

    # After four tokens of its own the model says END, whatever was before.
    with torch.no_grad():
        short.model.unembed.weight[TOKENS.end, 4 * TOKENS.size + begins + 3] = 100.0

    found = continued(short, {"none": []}, means, pairs=7, seed=1, temperature=1e-3)
    assert found["continued/copied/none"] == pytest.approx(4 / 12)


def test_a_word_that_is_drawn_again_without_no_head_is_the_models_own(
    trained: Trained, words: Words, section: CursiveCircuits
) -> None:
    spelt = sorted({item.text for item in words.items})[:2]
    strokes = synthetic(trained.tokens, pairs=6, n=4, rng=np.random.default_rng(0))
    means = mean_outputs(trained, strokes, batch_size=4)
    without = {"none": [], "some": trained.model.heads[:3]}
    found = redrawn_words(trained, words, spelt, without, means, section.sampling)

    own = written(trained, words, spelt, section.sampling)
    for word, points in zip(spelt, own, strict=True):
        np.testing.assert_array_equal(found[f"redrawn/none/{word}"], points)
    changed = [found[f"redrawn/some/{word}"] for word in spelt]
    same = [np.array_equal(points, other) for points, other in zip(own, changed, strict=True)]
    assert not all(same)


def test_over_the_ink_the_induction_head_looks_at_its_stroke(model: Trained) -> None:
    chosen = of_strokes(model, pairs=7, seed=0)
    row = chosen.row
    begins = len(TOKENS.opening)
    assert len(row) == begins + 28
    np.testing.assert_array_equal(row[begins : begins + 14], row[begins + 14 :])

    found = attention_over_ink(model, None, chosen)
    assert found["best"].tolist() == [INDUCTION.layer, INDUCTION.number]

    # Where the pen stands after each pair, and the radius that took it there.
    np.testing.assert_array_equal(found["position"], begins + 1 + 2 * np.arange(14))
    steps = np.diff(found["points"][:, :2], axis=0)
    np.testing.assert_allclose(steps[7:], steps[:6], atol=1e-6)

    # At the last token of a pair of the second copy, the pair's first token of the first copy.
    query = begins + 14 + 5
    assert found["self"][1, 0, query].argmax() == query - 14 + 1


def test_over_a_word_the_cross_attention_head_that_goes_with_the_pen_is_named(
    trained: Trained, words: Words, section: CursiveCircuits
) -> None:
    word = next(item.text for item in words.items if len(item.text) > 1)
    chosen = of_words(trained, (words, words), [word], section.sampling)
    assert chosen.text == f"{word} {word}"

    found = attention_over_ink(trained, words, chosen)
    characters = np.arange(found["cross"].shape[-1])
    time = np.arange(len(chosen.row) - 1)
    moves = {
        (layer, head): np.corrcoef(found["cross"][layer, head, 1:] @ characters, time)[0, 1]
        for layer, head in np.ndindex(found["cross"].shape[:2])
    }
    assert tuple(found["best_cross"]) == max(moves, key=lambda head: moves[head])

    # The second time the same strokes, wholly to the right of the first.
    first, second = np.split(found["points"], 2)
    assert second[:, 0].min() > first[:, 0].max()


def test_a_row_of_ones_own_tokens_begins_with_the_first_direction(model: Trained) -> None:
    radius = TOKENS.directions
    assert of_tokens(model, [0, radius, 1, radius], "").row.tolist() == [0, radius, 1, radius]
    with pytest.raises(InputError, match="ids -1 and"):
        of_tokens(model, [-1, radius, 1, radius], "")
