"""Rows with repeats: their flags against a brute-force reading, the oracle and the floor against
enumeration.
"""

from itertools import product
from math import log

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from eigen_phase.data import Data, Sequences, batch_source, draw, masked_labels
from eigen_phase.data_oracle import ceiling, entropy_floor, oracle, tiled_posterior
from eigen_phase.data_rows import held_out_rows, independent_rows, probe_rows
from eigen_phase.params import EigenPhase
from interp_core.files.params import read_section
from interp_core.training.batches import IGNORED

KINDS = ("tiled", "placed", "unrepeated", "fixed_distance")


def settings(kind: str = "tiled", **changes: object) -> Data:
    values = {
        "data": kind,
        "vocab_size": 50,
        "seq_length": 32,
        "patterns": 1,
        "pattern_length": (2, 10),
        "placements": (2, 3),
        "period": (4, 14),
        "fixed_distance": 9,
        "leave_out_predictable": False,
    }
    return Data.model_validate(values | changes)


def rows_of(kind: str, n: int = 1000, seed: int = 0, **changes: object) -> Sequences:
    return draw(np.random.default_rng(seed), n, settings(kind, **changes))


def brute_force_oracle(row: list[int]) -> list[int]:
    predictions = [-1]
    for t in range(1, len(row)):
        known, best, answer = row[:t], 0, -1
        for end in range(t - 1):  # an earlier occurrence of the last token, most recent last
            size = 0
            while size <= end and known[end - size] == known[t - 1 - size]:
                size += 1
            if size > 0 and size >= best:
                best, answer = size, known[end + 1]
        predictions.append(answer)
    return predictions


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_is_the_brute_force_reading_of_its_definition(kind: str) -> None:
    rows = rows_of(kind, 60, vocab_size=8)
    assert oracle(rows.ids).tolist() == [brute_force_oracle(row.tolist()) for row in rows.ids]


@pytest.mark.parametrize("kind", KINDS)
def test_every_flag_is_a_copy_whose_token_before_is_a_copy_too(kind: str) -> None:
    rows = rows_of(kind)
    row, target = np.nonzero(rows.predictable)
    source = rows.source[row, target]
    assert (source >= 1).all()
    assert (source < target - 1).all()
    np.testing.assert_array_equal(rows.ids[row, target], rows.ids[row, source])
    np.testing.assert_array_equal(rows.ids[row, target - 1], rows.ids[row, source - 1])
    assert (rows.copy[row, target] >= 2).all()
    assert (rows.predictable.sum() > 0) == (kind != "unrepeated")
    found = brute_flags(rows)
    np.testing.assert_array_equal(rows.predictable, found)


def brute_flags(rows: Sequences) -> np.ndarray:
    """A target is predictable when it and the token before it were both copied from neighbours."""
    flags = np.zeros_like(rows.predictable)
    for r, t in product(range(len(rows)), range(1, rows.ids.shape[1])):
        here, before = rows.source[r, t], rows.source[r, t - 1]
        flags[r, t] = here >= 1 and before >= 0 and here == before + 1
    if (
        rows.copy == 0
    ).any():  # placed: a copy's first token is never flagged, even right behind another copy
        flags &= ~adjacent(rows)
    return flags


def adjacent(rows: Sequences) -> np.ndarray:
    """Targets that begin a copy directly behind another one."""
    begins = np.zeros_like(rows.predictable)
    begins[:, 1:] = (rows.copy[:, 1:] != rows.copy[:, :-1]) & (rows.copy[:, 1:] > 0)
    return begins


def test_on_distinct_tokens_the_oracle_is_right_exactly_where_the_flags_are() -> None:
    tiled = rows_of("tiled", 1000, vocab_size=100000)
    np.testing.assert_array_equal(
        oracle(tiled.ids)[:, 1:] == tiled.ids[:, 1:], tiled.predictable[:, 1:]
    )
    placed = rows_of("placed", 1000, vocab_size=100000, seq_length=64)
    right = oracle(placed.ids) == placed.ids
    assert (
        right[placed.predictable].mean() > 0.97
    )  # beyond a pattern's end its next copy is followed by something else
    assert not right[placed.source < 0].any()


def test_placed_copies_are_whole_equal_and_apart() -> None:
    rows = rows_of("placed", 500, patterns=2, seq_length=64)
    assert (rows.copy[rows.source >= 0] >= 2).all()
    lengths, most = [], []
    for ids, source, copy in zip(rows.ids, rows.source, rows.copy, strict=True):
        copied = np.nonzero(source >= 0)[0]
        np.testing.assert_array_equal(ids[copied], ids[source[copied]])
        assert (copy[source[copied]] == copy[copied] - 1).all()
        lengths.append((copy == 1).sum())
        most.append(copy.max())
    assert min(lengths) >= 2
    assert max(lengths) <= 2 * 10
    assert set(most) == {2, 3}


def test_arrangements_of_placed_copies_are_equally_likely() -> None:
    rows = rows_of("placed", 6000, pattern_length=(2, 2), placements=(2, 2), seq_length=6)
    starts = [tuple(np.nonzero(copy > 0)[0].tolist()) for copy in rows.copy]
    counts = {arrangement: starts.count(arrangement) for arrangement in set(starts)}
    assert len(counts) == 6  # two blocks of two in six places
    assert max(abs(count - 1000) for count in counts.values()) < 130


def test_tiled_rows_have_every_period_and_no_other() -> None:
    rows = rows_of("tiled", 3000)
    first = (rows.source >= 0).argmax(axis=1)
    assert set(first.tolist()) == set(range(4, 15))
    np.testing.assert_array_equal(rows.copy, np.arange(32) // first[:, None] + 1)


def test_pairs_point_where_an_induction_head_looks() -> None:
    rows = rows_of("placed", 50)
    pairs = rows.pairs
    assert len(pairs) == rows.predictable.sum()
    np.testing.assert_array_equal(
        rows.ids[pairs.batch, pairs.query], rows.ids[pairs.batch, pairs.duplicate_key]
    )
    np.testing.assert_array_equal(rows.ids[pairs.batch, pairs.induction_key], pairs.target)
    np.testing.assert_array_equal(rows.ids[pairs.batch, pairs.query + 1], pairs.target)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_depends_on_seed_and_step_alone(kind: str) -> None:
    source = batch_source(settings(kind), rows=4, seed=3)
    first, labels = source(5)
    source(6)
    again, _ = batch_source(settings(kind), rows=4, seed=3)(5)
    assert torch.equal(first, again)
    assert torch.equal(first, labels)
    assert not torch.equal(first, source(6)[0])
    assert not torch.equal(first, batch_source(settings(kind), rows=4, seed=4)(5)[0])


def test_labels_leave_out_what_induction_predicts_and_nothing_else() -> None:
    rows = rows_of("tiled", 20)
    labels = masked_labels(rows, leave_out_predictable=True)
    assert (labels[rows.predictable] == IGNORED).all()
    np.testing.assert_array_equal(labels[~rows.predictable], rows.ids[~rows.predictable])
    np.testing.assert_array_equal(masked_labels(rows, leave_out_predictable=False), rows.ids)


def test_without_repeats_the_oracle_is_at_chance() -> None:
    rows = rows_of("unrepeated", 4000)
    found = ceiling(rows, 50, np.random.default_rng(1), resamples=1000)
    assert np.isnan(found.predictable)
    low, high = found.all_interval
    assert low < 1 / 50 < high


@pytest.mark.parametrize("kind", ["tiled", "placed", "fixed_distance"])
def test_the_ceiling_counts_a_blind_guess_at_chance(kind: str) -> None:
    rows = rows_of(kind, 200)
    found = ceiling(rows, 50, np.random.default_rng(1), resamples=1000)
    hits, n = 0.0, 0
    for ids in rows.ids:
        for t, guess in enumerate(brute_force_oracle(ids.tolist())[1:], start=1):
            hits += 1 / 50 if guess < 0 else float(guess == ids[t])
            n += 1
    assert found.all == pytest.approx(hits / n)
    assert found.all_interval[0] < found.all < found.all_interval[1]
    assert 0.85 < found.predictable <= 1


def test_the_tiled_posterior_is_enumeration_over_all_rows() -> None:
    chosen = settings("tiled", vocab_size=2, seq_length=6, period=(2, 4))
    everything: dict[tuple[int, ...], float] = {}
    for period in (2, 3, 4):
        for segment in product(range(2), repeat=period):
            row = tuple(segment[t % period] for t in range(6))
            everything[row] = everything.get(row, 0.0) + 1 / 3 / 2**period
    rows = np.array(list(everything))
    found = tiled_posterior(rows, chosen)
    for row, probabilities in zip(everything, found, strict=True):
        assert np.prod(probabilities) == pytest.approx(everything[row])
    # Entropy of a row less that of its first token, over the five targets: the floor, exactly.
    weights = np.array(list(everything.values()))
    exact = -(weights * np.log(weights)).sum() - log(2)
    assert -(weights[:, None] * np.log(found))[:, 1:].sum() == pytest.approx(exact)


def test_the_floor_of_placed_rows_is_a_bound_and_says_so() -> None:
    rows = rows_of("placed", 2000)
    floor, exact = entropy_floor(rows, settings("placed"))
    assert not exact
    assert 0 < floor < log(50)
    assert floor == pytest.approx(log(50) * (rows.source[:, 1:] < 0).mean())


def test_the_floor_of_the_masked_loss_is_higher() -> None:
    rows = rows_of("tiled", 2000)
    floor, exact = entropy_floor(rows, settings("tiled"))
    masked, _ = entropy_floor(rows, settings("tiled", leave_out_predictable=True))
    assert exact
    assert floor < masked < log(50) + 0.01
    assert entropy_floor(rows_of("unrepeated"), settings("unrepeated")) == (
        pytest.approx(log(50)),
        True,
    )


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "placed",
            {"pattern_length": (2, 40)},
            "a pattern of 40 tokens is longer than the sequence of 32",
        ),
        (
            "placed",
            {"seq_length": 18},
            "2 copies of a pattern of 10 tokens do not fit into a sequence of 18",
        ),
        (
            "placed",
            {"placements": (1, 3)},
            "placements must be two numbers in order, the first at least 2",
        ),
        ("tiled", {"period": (9, 4)}, "period must be two numbers in order"),
        ("tiled", {"period": (4, 31)}, "leaves nothing to repeat"),
        ("fixed_distance", {"fixed_distance": 31}, "fixed_distance must be from 2 to 30"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    kind: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(kind, **changes)


def test_what_is_measured_on_and_trained_on_share_no_row() -> None:
    training = read_section("eigen_phase", EigenPhase, "laptop").training
    n = training.batch_size
    source = batch_source(training.data_settings, rows=n, seed=training.seed)

    # As many rows as a batch: with another number even the same stream gives other rows.
    as_many = training.model_copy(update={"held_out_sequences": n, "probe_sequences": n})
    streams = {
        "held out, a batch": held_out_rows(as_many, training.data_settings).ids,
        "probe, a batch": probe_rows(as_many).ids,
        "independent, a batch": independent_rows(as_many).ids,
        "held out": held_out_rows(training, training.test_settings).ids,
        "probe": probe_rows(training).ids,
        "independent": independent_rows(training).ids,
        "another draw": probe_rows(training, draw_number=1).ids,
        **{f"step {step}": source(step)[0].numpy() for step in range(4)},
    }
    rows = [row for ids in streams.values() for row in map(tuple, ids.tolist())]
    assert len(set(rows)) == len(rows)
