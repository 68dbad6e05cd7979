"""The headline numbers a second way, and the controls they rest on."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cursive_circuits.data import Words
from cursive_circuits.data_bank import Item
from cursive_circuits.data_stimuli import repeated, same_length, synthetic
from cursive_circuits.data_tokens import Tokens
from cursive_circuits.figures_causal import paths
from cursive_circuits.figures_circuits import composition, direction_maps
from cursive_circuits.figures_heads import excess, offsets
from cursive_circuits.intervene_paths import path_effects
from cursive_circuits.measure_alignment import alignment
from cursive_circuits.measure_gain import KINDS, bag_bound, gain_report, gain_rows, gains
from cursive_circuits.measure_samples import (
    by_word,
    candidates,
    curve,
    read_right,
    sample_report,
    written,
)
from cursive_circuits.model import Head
from cursive_circuits.model_watching import observing
from cursive_circuits.params import CursiveCircuits, Statistics
from cursive_circuits.run_directory import Trained
from drawn_figures import figures_saved
from interp_core.errors import InputError
from interp_core.plotting import INDUCTION, NULL
from interp_core.statistics.interval import mean_share
from interp_core.statistics.random_sets import unmatched_sets
from small_strokes import ALPHABET, random_model


def spelt(row: np.ndarray) -> list[str]:
    return [*map(str, "".join(ALPHABET[i - 1] for i in row if i).split(" "))]


def test_a_gain_is_what_the_strokes_cost_one_by_one(trained: Trained, words: Words) -> None:
    found = gains(trained, words, n=5, seed=3, batch_size=2)
    made = gain_rows(words, n=5, seed=3)

    for number, ink in enumerate(made.inks):
        for kind, name in (("repeat", "second"), ("after_other", "after_other")):
            row = torch.from_numpy(made.rows[kind][number])
            with torch.no_grad():
                shares = trained.model(row[None]).logits[0].double().log_softmax(-1)

            # The word's own strokes are the row's last tokens, each predicted one place earlier.
            places = range(len(row) - len(ink), len(row))
            np.testing.assert_array_equal(row[places[0] :], ink)
            costs = [-float(shares[place - 1, row[place]]) for place in places]

            value = found[f"empty/{name}"][number, KINDS.index("loss")]
            assert value == pytest.approx(np.mean(costs), abs=1e-5)

        first = made.rows["repeat"][number][2 : 2 + len(ink)]
        np.testing.assert_array_equal(first, ink)
        low, high = made.first_targets(words.tokens)[number]
        np.testing.assert_array_equal(made.rows["repeat"][number][1:][low:high], ink)


def test_the_excess_of_a_repeat_is_its_control_less_itself(
    words: Words, trained: Trained, tests: Statistics, rng: np.random.Generator
) -> None:
    found = gains(trained, words, n=6, seed=0, batch_size=6)
    report = gain_report(found, tests, rng)

    loss = KINDS.index("loss")
    difference = found["mismatched/after_other"][:, loss] - found["mismatched/second"][:, loss]
    excess = report["mismatched"]["excess"]["loss"]
    assert excess["value"] == pytest.approx(difference.mean(), abs=1e-9)
    assert (excess["n"], excess["unit"]) == (6, "words")


def test_a_gain_is_said_of_the_texts_under_which_it_is_clear(
    tests: Statistics, rng: np.random.Generator
) -> None:
    n = 12
    found = {"bound": np.ones((n, 1))}

    # Under the wrong text alone a repeat costs a nat less than after another word.
    for text in ("matching", "mismatched", "empty"):
        helps = text == "mismatched"
        for place in ("first", "second", "after_other", "after_shuffled"):
            nats = 1.0 if helps and place == "second" else 2.0
            shuffled = 1.0 if place == "after_shuffled" else nats
            found[f"{text}/{place}"] = np.full((n, len(KINDS)), shuffled)

    assert gain_report(found, tests, rng)["verdict"] == (
        "a repeat helps beyond the control under mismatched text; the order of the strokes adds "
        "to their bag under no text"
    )


def test_a_wrong_text_is_never_the_words_own(words: Words) -> None:
    made = gain_rows(words, n=12, seed=1)

    for number in range(12):
        right = spelt(made.texts["matching", "repeat"][number])
        assert right[0] == right[1]
        assert spelt(made.texts["matching", "after_other"][number])[1] == right[1]
        assert right[0] not in spelt(made.texts["mismatched", "repeat"][number])
        assert len(made.texts["empty", "repeat"][number]) == 0


def test_no_prompt_with_a_wrong_text_has_its_own_word_in_it(words: Words) -> None:
    right, wrong = (
        repeated(words, text=text, n=60, rng=np.random.default_rng(0), family=text)
        for text in ("matching", "mismatched")
    )
    np.testing.assert_array_equal(right.prompts.tokens, wrong.prompts.tokens)
    for own, other in zip(right.text, wrong.text, strict=True):
        assert not set(spelt(own)) & set(spelt(other))


def test_a_bag_of_pairs_is_bounded_by_the_token() -> None:
    four_pairs = np.array([0, 20, 1, 20, 2, 21, 3, 22])
    assert bag_bound(four_pairs) == pytest.approx(np.log(4) / 2)
    assert bag_bound(np.tile(four_pairs, 3)) == bag_bound(four_pairs)


def test_a_control_word_is_another_of_the_same_writer(words: Words) -> None:
    rng = np.random.default_rng(5)

    for item in words.items[:12]:
        length = len(words.tokens.encode(item.points)) + 40
        other, ink = same_length(words, item, length, rng)
        assert (other.author, len(ink)) == (item.author, length)
        assert other.text != item.text
        assert _written_by(words, item, ink)


def _written_by(words: Words, item: Item, ink: np.ndarray) -> bool:
    """Whether the strokes are, end to end, words of the item's writer other than the item."""
    own = [one for one in words.items if one.author == item.author and one.text != item.text]
    inks = [words.tokens.encode(one.points) for one in own]
    starts = {0}

    while starts and len(ink) not in starts:
        reached = set()
        for start in starts:
            for one in inks:
                rest = ink[start : start + len(one)]
                if np.array_equal(rest, one[: len(rest)]):
                    reached.add(start + len(rest))
        starts = reached

    return bool(starts)


def test_true_ink_is_read_against_another_writers(words: Words, section: CursiveCircuits) -> None:
    rendered, true = candidates(words, section.sampling)
    assert len({item.text for item in rendered}) == section.sampling.words

    for candidate, ink in zip(rendered, true, strict=True):
        assert candidate.text == ink.text
        assert candidate.author != ink.author


def test_a_curve_has_neither_place_nor_size_nor_slant(rng: np.random.Generator) -> None:
    points = np.column_stack([rng.normal(size=(12, 2)).cumsum(axis=0), np.ones(12)])
    found = curve(points, 40)

    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(found.std(axis=0), 1.0, atol=1e-9)
    assert abs(found[:, 0] @ found[:, 1]) < 1e-9

    moved = points * [3.0, 3.0, 1.0] + [5.0, -2.0, 0.0]
    np.testing.assert_allclose(curve(moved, 40), found, atol=1e-9)


def test_a_sample_is_read_by_the_word_that_was_asked_for() -> None:
    names = ["ab", "cd", "ef"]
    near = {"ab": [0.1, 2.0, 3.0], "cd": [2.0, 0.2, 3.0], "ef": [3.0, 2.0, 0.3]}

    for asked in (names * 2, ["ef", "ab", "cd", "cd"]):
        distance = np.array([near[word] for word in asked])
        assert read_right(distance, asked, names).all()
        assert not read_right(distance, [*asked[1:], "xy"], names).all()

    nothing = np.full((1, 3), np.inf)
    assert not read_right(nothing, ["ab"], names).any()


def test_legibility_has_as_many_units_as_words() -> None:
    asked = [f"word{i}" for i in range(20)] * 3
    right = np.array([i % 20 < 15 for i in range(60)])
    found = by_word(right, asked)

    assert (found.value, found.n, found.unit) == (0.75, 20, "words")
    # Three equal inks of a word say no more than one: 60 independent inks would give .25.
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > 0.3


def test_samples_are_read_by_their_own_text_and_true_ink_by_another_writers(
    trained: Trained, section: CursiveCircuits
) -> None:
    """The candidates are what the model itself writes; the other writer writes the next word in the
    place of each.
    """
    # Twelve, because fewer words are each worth one trial in an interval, however their inks vary.
    spelt = ["tek", "ab", "oz", "mi", "lu", "ra", "ko", "fox", "zebra", "dog", "jam", "vex"]
    changes = {"temperature": 1e-9, "words": 12, "samples": 2}
    cold = section.sampling.model_copy(update=changes)

    placeholder = np.array([[0.0, 0.0, 1.0], [0.2, 0.1, 1.0]])
    bank = [Item("any", word, placeholder, None) for word in spelt]
    inks = written(trained, Words(bank, trained.tokens, ALPHABET), spelt, cold)

    own = [Item("model", word, ink, None) for word, ink in zip(spelt, inks, strict=True)]
    after = [*inks[1:], inks[0]]
    other = [Item("other", word, ink, None) for word, ink in zip(spelt, after, strict=True)]
    words = Words([*own, *other], trained.tokens, ALPHABET)
    arrays, report = sample_report(trained, words, cold)

    assert report["samples"]["value"] == 1.0
    assert report["shown_right"] == len(report["shown"]) == cold.shown
    assert report["true_ink"]["value"] == 0.0

    # What is shown stands beside the ink of the same word by the other writer.
    names = [item.text for item in candidates(words, cold)[0]]
    assert report["shown"] == (names * 2)[: cold.shown]
    for number, name in enumerate(report["shown"]):
        place = spelt.index(name)
        np.testing.assert_array_equal(arrays[f"shown/{number}"], inks[place])
        np.testing.assert_array_equal(arrays[f"true/{number}"], after[place])

    # Two words stand in each other's place, all others in their own: true ink is asked for by its
    # own spelling, whatever the order of the candidates.
    assert names != sorted(names)
    crossed = [*inks[:10], inks[11], inks[10]]
    mixed = [Item("other", word, ink, None) for word, ink in zip(spelt, crossed, strict=True)]
    report = sample_report(trained, Words([*own, *mixed], trained.tokens, ALPHABET), cold)[1]
    assert report["true_ink"] == mean_share(np.array([1] * 10 + [0, 0]), unit="words").to_json()
    assert report["samples"]["value"] == 1.0

    # One candidate is a line: both samples of its word are read as another, all others as before.
    line = Item("model", spelt[0], np.array([[0.0, 0.6, 1.0], [0.3, 0.6, 1.0]]), None)
    report = sample_report(
        trained, Words([line, *own[1:], *other], trained.tokens, ALPHABET), cold
    )[1]
    assert report["samples"] == mean_share(np.array([0] + [1] * 11), unit="words").to_json()


def test_alignment_asks_about_the_letter_of_the_token_that_comes_next(
    words: Words, trained: Trained
) -> None:
    found = alignment(trained, words, n=4, seed=2, batch_size=3)
    pool = [item for item in words.items if len(item.text) > 1]
    drawn = np.random.default_rng([2, 30]).integers(len(pool), size=4)

    for number, which in enumerate(drawn):
        item = pool[int(which)]
        ink = words.tokens.encode(item.points)
        row = torch.from_numpy(words.tokens.row([ink], end=False))
        text = torch.from_numpy(words.text([item.text]))
        with torch.no_grad(), observing(trained.model) as seen:
            trained.model(row[None], text[None])

        letters = _letter_of_each_token(words, item)
        pattern = seen[1, "cross"].call.pattern()[0, 0].numpy()  # position character
        rows = [pattern[2 + i - 1] for i in range(len(letters))]
        hits = [row.argmax() == letter for row, letter in zip(rows, letters, strict=True)]
        assert found["right"][number, 1, 0] == pytest.approx(np.mean(hits))

        # The most attended character may be one for a whole word: its distance is not.
        characters = np.arange(len(text))
        away = [row @ abs(characters - letter) for row, letter in zip(rows, letters, strict=True)]
        assert found["error"][number, 1, 0] == pytest.approx(np.mean(away), abs=1e-5)

        # Of a random model many places are all but ties, which rounding orders.
        moves = spearmanr([row @ characters for row in rows], np.arange(len(rows)))[0]
        assert found["monotone"][number, 1, 0] == pytest.approx(moves, abs=0.1)


def _letter_of_each_token(words: Words, item: Item) -> list[int]:
    assert item.letters is not None
    assert isinstance(words.tokens, Tokens)
    letters, point = [], 0
    for _, _, _, last in words.tokens.steps(item.points):
        letters += [item.letters[point]] * 2
        point += int(last)
    return letters


def test_a_writer_that_always_writes_the_same_is_no_path(trained: Trained) -> None:
    model = random_model(trained.tokens)
    value = model.attention(0, "self").kv
    with torch.no_grad():
        value.weight[model.d_model : model.d_model + model.d_head] = 0.0
        value.bias[model.d_model : model.d_model + model.d_head] = 3.0

    constant, other, reader = Head(0, "self", 0), Head(0, "self", 1), Head(1, "self", 0)
    stimuli = synthetic(trained.tokens, pairs=6, n=4, rng=np.random.default_rng(0))
    same = Trained("control", model, trained.tokens, ALPHABET)
    effects = path_effects(same, stimuli, {reader: 2}, batch_size=4)

    assert np.abs(effects[reader, constant, "k"]).max() < 1e-4
    assert np.abs(effects[reader, other, "k"]).max() > 1e-3


def test_sets_of_other_heads_are_distinct_and_all_of_them_where_they_are_few() -> None:
    rng = np.random.default_rng(0)
    pool = [Head(layer, "self", number) for layer in range(4) for number in range(3)]

    few = unmatched_sets(2, pool[:5], rng, draws=50)
    assert len(set(few)) == len(few) == 10

    many = unmatched_sets(3, pool, rng, draws=50)
    assert len(set(many)) == len(many) == 50
    assert all(len(set(one)) == 3 for one in many)
    assert unmatched_sets(3, pool[:2], rng, draws=50) == []


@pytest.mark.parametrize("head", [Head(0, "self", 3), Head(2, "cross", 11)])
def test_a_head_reads_its_own_name(head: Head) -> None:
    assert Head.read(str(head)) == head
    with pytest.raises(InputError, match="L1H2 or L1X2"):
        Head.read("L1Y2")


def test_maps_of_composition_name_their_heads_and_leave_out_what_is_noise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = figures_saved(monkeypatch)
    quiet, loud = np.zeros((2, 2, 2, 2)), np.zeros((2, 2, 2, 2))
    quiet[0, 0, 1, 1], loud[0, 1, 1, 0] = 2.0, 9.0

    for name, cross in (("quiet", quiet), ("loud", loud)):
        arrays = {f"self_{reads}_z": loud for reads in "qkv"}
        arrays |= {f"cross_{reads}_z": cross for reads in "qkv"}
        composition(arrays, name, tmp_path / f"{name}.png")

    assert {"L0H1", "L1H0"} <= set(seen["quiet"].words.split(" | "))
    assert "L0X1" not in seen["quiet"].words
    assert "none of their pairs is above z = 2.0" in seen["quiet"].words
    assert "L0X1" in seen["loud"].words


def test_two_models_offsets_stand_on_one_axis(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = figures_saved(monkeypatch)
    flat, high = (np.tile([[value, value, value]], (3, 1)) for value in (0.003, 0.7))
    shown = {
        "writes": ("L0H0", "mismatched_text", flat),
        "control": ("L2H2", "synthetic", high),
    }
    offsets(shown, [0, 1, 2], tmp_path / "o.png")

    assert "writes, L0H0\n(same word, other text)" in seen["o"].words
    limits = [axes.get_ylim() for axes in seen["o"].figure.axes]
    assert all(first == second for first, second in pairwise(limits))


def test_every_head_is_a_point_of_its_family_and_those_that_pass_are_coloured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = figures_saved(monkeypatch)
    largest = np.array([[0.0, 0.01], [0.2, 0.6]])
    arrays = {
        "synthetic/by_offset": np.stack([largest / 2, largest]),
        "synthetic/induction": largest == 0.6,
        "synthetic/relay": largest == 0.2,
    }
    best = {"value": 0.6, "low": 0.55, "high": 0.65}
    report = {"families": {"synthetic": {"n": 8, "best_excess": best}}}
    excess({"control": (report, arrays)}, tmp_path / "excess.png")

    (axes,) = seen["excess"].figure.axes
    shown = {
        line.get_color(): sorted(float(x) for x in np.asarray(line.get_xdata()))
        for line in axes.lines
        if line.get_marker() == "o" and len(np.asarray(line.get_xdata()))
    }
    assert shown == {NULL: [0.0, 0.01], INDUCTION: [0.2, 0.6]}
    assert "control: random strokes" in seen["excess"].words


def test_maps_of_one_kind_and_paths_of_all_models_have_one_scale(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = figures_saved(monkeypatch)
    values = np.random.default_rng(0).standard_normal((2, 2, 8, 8))
    values[0] *= 20
    direction_maps({"ov_direction": values}, "control", tmp_path / "ov.png", kind="ov")

    maps = [image for axes in seen["ov"].figure.axes for image in axes.images]
    assert len(maps) == 4
    assert len({image.get_clim() for image in maps}) == 1

    found = {}
    for name, effect in (("writes", 0.0), ("control", -0.4)):
        names = np.array([["L0H0", "L1H0", reads] for reads in "kq"])
        arrays = {"names": names, "z": np.ones(2), "effect": np.full((2, 3), effect)}
        report = {"paths": {"k": {"agreement": 0.5}}}
        found[name] = (report, {f"paths/{key}": array for key, array in arrays.items()})
    paths(found, tmp_path / "paths.png")

    limits = [axes.get_ylim() for axes in seen["paths"].figure.axes]
    assert limits[0] == limits[1]
