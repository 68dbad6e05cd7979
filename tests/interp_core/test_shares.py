"""A measurement in shares is what it is in one piece, and no share is measured twice."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import small_project
from interp_core.errors import InputError
from interp_core.loading import load_model
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import Subject
from interp_core.training import shares
from interp_core.training.shares import Elsewhere, Found, dealing, in_shares

ITEMS = list(range(10))
measured: list[Sequence[int]] = []
stop: list[bool] = []  # whether the last share is stopped


def squares(subject: Subject, items: Sequence[int], times: int) -> Found:
    """A measurement that says which shares it was asked for."""
    if 7 in items and stop:
        raise KeyboardInterrupt
    measured.append(items)
    return {"square": np.array(items) ** 2 * times + subject.n_layers}


def found(subject: Subject, times: int = 1) -> list[int]:
    parts = in_shares(squares, ITEMS, subject, times, about=[times], tokens=100, passes=1.0)
    return np.concatenate([part["square"] for part in parts]).tolist()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """How a small model is loaded again; shares are of three items or more."""
    model = small_project.random_model(layers=2, seed=0)
    small_project.save_model(tmp_path / "toy", model, small_project.word_tokenizer(512))
    monkeypatch.setattr(shares, "_size", lambda *_: 3)
    measured.clear()
    stop.clear()

    spec = ModelSpec(source="local", path=tmp_path / "toy")
    digest = load_model(spec, name="toy").hash
    return Elsewhere(spec, "toy", digest, "cpu", "float32", "own", 1, tmp_path / "kept")


@pytest.fixture
def toy(elsewhere: Elsewhere) -> Subject:
    return elsewhere.load()


def test_without_a_cluster_there_is_one_share_and_nothing_is_kept(
    toy: Subject, elsewhere: Elsewhere
) -> None:
    assert found(toy) == [i**2 + 2 for i in ITEMS]
    assert measured == [ITEMS]
    assert not elsewhere.kept.exists()


def test_shares_together_are_the_whole(toy: Subject, elsewhere: Elsewhere) -> None:
    expected = found(toy)
    measured.clear()
    with dealing(elsewhere):
        assert found(toy) == expected
    assert measured == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_a_call_that_was_stopped_goes_on_and_measures_nothing_twice(
    toy: Subject, elsewhere: Elsewhere
) -> None:
    expected = found(toy)
    measured.clear()
    with dealing(elsewhere):
        stop.append(True)
        with pytest.raises(KeyboardInterrupt):
            found(toy)
        stop.clear()
        assert measured == [[0, 1, 2], [3, 4, 5]]

        # What a kill left without its record was not written to its end.
        next(elsewhere.kept.glob("*/induction-lab.sha256")).unlink()
        assert found(toy) == expected
    assert len(measured) == 4

    # Of other arguments nothing is taken.
    with dealing(elsewhere):
        assert found(toy, times=2) == [2 * i**2 + 2 for i in ITEMS]


def test_another_model_is_measured_here(toy: Subject, elsewhere: Elsewhere) -> None:
    with dealing(replace(elsewhere, sha256="another")):
        found(toy)
    assert measured == [ITEMS]
    assert not elsewhere.kept.exists()


def test_weights_that_changed_since_are_refused(
    toy: Subject, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    small_project.random_model(layers=2, seed=1).save_pretrained(tmp_path / "toy")
    with dealing(elsewhere), pytest.raises(InputError, match="no longer those that the call"):
        found(toy)


def test_a_share_is_worth_what_is_done_before_it(
    toy: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small model the process, of a large one two passes over all prompts."""
    monkeypatch.undo()
    weights = sum(parameter.numel() for parameter in toy.model.parameters())
    items = shares._size(toy, 1000, 2.0)
    assert items * 2.0 * 2 * weights * 1000 >= shares.WORTH * shares.START
    assert shares._size(toy, 10**12, 2.0) == shares.WORTH + 1
    assert shares._size(toy, 10**12, 100.0) == 1
