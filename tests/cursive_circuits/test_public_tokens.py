"""The public tokenizer, against points and ids that were derived by hand, and against what it says
of itself.
"""

import numpy as np
import pytest

from cursive_circuits.data import Split, Words
from cursive_circuits.data_bank import Item
from cursive_circuits.data_public_tokens import PublicTokens
from cursive_circuits.data_stimuli import FAMILIES, FamilySettings, family, written_families
from interp_core.errors import InputError
from small_strokes import ALPHABET

TOKENS = PublicTokens()
PAD, END, WORD = 522, 523, 524
SIZES = FamilySettings(
    synthetic_pairs=5, natural_words=3, natural_pairs=6, context=400, characters=50
)

# A direction's bins are 2 pi / 219 wide and begin at -pi: 0 is 109.5 of them from there, pi / 2 is
# 164.25, -pi / 2 is 54.75, pi / 4 is 136.875, and pi begins the last. A radius of r lies (r -
# .0001) / (.0599 / 29) bins after bin 1 when it is below .06, and 119 ln(r / .06001) / ln(.9 /
# .06001) bins after bin 31 when it is not.
STILL, RIGHT, DOWN, UP, LEFT, ASLANT = (302 + n for n in (109, 109, 164, 54, 219, 136))
LIFTED = 151

FIRST = np.array(
    [[0.0, 0.0, 0], [0.05, 0.0, 1], [0.05, 0.07, 1], [0.05, -0.23, 0], [0.0, -0.23, 1]]
)
FIRST_IDS = [
    (STILL, 0),  # a row's first step is none
    (RIGHT, 25),  # .05: 24.16 bins after bin 1
    (DOWN, 37),  # .07: 6.77 after bin 31
    (STILL, LIFTED + 0),  # the stroke's end
    (UP, 101),  # .3: 70.72 after bin 31; the way to the next stroke has the pen down
    (LEFT, 25),
    (STILL, LIFTED + 0),
]
SECOND = np.array([[1.0, 0.0, 0], [1.05, 0.05, 1]])
SECOND_IDS = [
    # From the first word's last point, .05 left of its right edge and .23 above: atan2(.23, .05) is
    # 156.79 bins from -pi, and .2354 is 60.06 after bin 31.
    (302 + 156, 91),
    (ASLANT, 38),  # .0707: 7.21 after bin 31
    (STILL, LIFTED + 0),
]


def flat(pairs: list[tuple[int, int]]) -> list[int]:
    return [token for pair in pairs for token in pair]


def test_points_have_the_ids_that_the_definition_gives_them() -> None:
    row = TOKENS.row([TOKENS.encode(FIRST), TOKENS.encode(SECOND, after=FIRST)])
    assert TOKENS.public_ids[row].tolist() == [*flat(FIRST_IDS), WORD, WORD, *flat(SECOND_IDS), END]
    padded = TOKENS.stack([row, row[:4]])
    assert set(TOKENS.public_ids[padded[1, 4:]]) == {PAD}
    assert sorted(TOKENS.public_ids) == list(range(525))
    assert TOKENS.public_ids[TOKENS.prompt].tolist() == flat(FIRST_IDS[:1])


@pytest.mark.parametrize(
    ("length", "bin_"), [(0.00005, 0), (0.00011, 1), (0.060005, 30), (0.0601, 31), (2.0, 150)]
)
def test_a_length_belongs_to_the_bin_that_begins_below_it(length: float, bin_: int) -> None:
    ids = TOKENS.public_ids[TOKENS.encode(np.array([[0.0, 0.0, 0], [0.0, length, 1]]))]
    assert ids[3] == bin_


def test_ids_come_back_as_the_beginnings_of_their_bins() -> None:
    first, second = TOKENS.decode(
        TOKENS.row([TOKENS.encode(FIRST), TOKENS.encode(SECOND, after=FIRST)])
    )
    assert first.shape == FIRST.shape
    np.testing.assert_array_equal(first[:, 2], FIRST[:, 2])
    np.testing.assert_allclose(first[:, :2] - first[0, :2], FIRST[:, :2], atol=0.02)
    np.testing.assert_allclose(second[:, 0], SECOND[:, 0] - 1, atol=0.02)
    np.testing.assert_allclose(second[:, 1], SECOND[:, 1], atol=0.02)
    step = first[2, :2] - first[1, :2]
    assert np.hypot(*step) == pytest.approx(0.06001 * (0.9 / 0.06001) ** (6 / 119))
    np.testing.assert_array_equal(TOKENS.owners(FIRST), [0, 1, 2, 2, 3, 4, 4])
    path = TOKENS.path(TOKENS.encode(FIRST))
    np.testing.assert_array_equal(path[:, 2], [0, 1, 1, 0, 0, 1, 0])
    assert TOKENS.drift(FIRST) == pytest.approx(np.linalg.norm((first - FIRST)[:, :2].mean(axis=0)))
    with pytest.raises(InputError, match="without points"):
        TOKENS.encode(FIRST[:0])


@pytest.fixture(scope="module")
def public_words(items: list[Item]) -> Words:
    return Words.split(items, TOKENS, ALPHABET, Split(held_out=0.3, seed=0))[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_right_answers_in_public_tokens_too(
    name: str, public_words: Words
) -> None:
    stimuli = family(name, public_words, n=8, seed=1, settings=SIZES)
    prompts, pairs = stimuli.prompts, stimuli.prompts.pairs
    np.testing.assert_array_equal(prompts.tokens[pairs.batch, pairs.query + 1], pairs.target)
    np.testing.assert_array_equal(prompts.control[pairs.batch, pairs.query + 1], pairs.target)
    assert (pairs.query % 2 == pairs.earlier % 2).all()
    assert (prompts.tokens[:, 0] < TOKENS.directions).all()  # no WORD WORD before the first word
    assert set(pairs.batch) == set(range(8))
    if name != "other_writer":
        np.testing.assert_array_equal(
            prompts.tokens[pairs.batch, pairs.earlier], prompts.tokens[pairs.batch, pairs.query]
        )
        np.testing.assert_array_equal(prompts.tokens[pairs.batch, pairs.earlier + 1], pairs.target)


def test_one_writers_bank_has_no_family_of_two(items: list[Item]) -> None:
    mine = [Item("Ann", item.text, item.points, None) for item in items]
    words = Words.split(mine, TOKENS, ALPHABET, Split(held_out=0.3, seed=0))[1]
    assert written_families(words) == tuple(name for name in FAMILIES if name != "other_writer")
