"""Banks, tokens, rows and stimuli: what goes in comes out, and what is wrong is named."""

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from cursive_circuits.data import Words, WrittenRows, augmented
from cursive_circuits.data_bank import Item, Source, fetch, load_bank, save_bank
from cursive_circuits.data_script import Script, simplified, spellings, write_bank
from cursive_circuits.data_stimuli import FAMILIES, FamilySettings, Stimuli, family, warped
from cursive_circuits.data_tiled import Drill, DrilledRows, TiledRows
from cursive_circuits.data_tokens import Tokens
from cursive_circuits.measure_bank import bank_report
from cursive_circuits.params import CursiveCircuits
from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256
from interp_core.files.params import read_section
from interp_core.stimuli.prompts import oracle
from interp_core.training.batches import IGNORED
from small_strokes import ALPHABET

SIZES = FamilySettings(
    synthetic_pairs=5, natural_words=3, natural_pairs=6, context=400, characters=50
)
TOKENS = Tokens(
    directions=72, radii=32, smallest_radius=0.02, largest_radius=0.4, origin=(0.0, 0.6)
)
coordinates = st.floats(-3, 3, allow_nan=False, width=32)


@given(
    arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=coordinates), st.data()
)
@settings(max_examples=60)
def test_any_strokes_become_pairs_and_come_back_to_within_a_bin(
    plane: np.ndarray, data: st.DataObject
) -> None:
    pen = data.draw(arrays(np.float64, len(plane), elements=st.sampled_from([0.0, 1.0])))
    points = np.column_stack([plane, pen])
    ids = TOKENS.encode(points)
    assert len(ids) % 2 == 0
    assert (ids[::2] < TOKENS.directions).all()
    assert ((ids[1::2] >= TOKENS.directions) & (ids[1::2] < TOKENS.pad)).all()
    (decoded,) = TOKENS.decode(TOKENS.row([ids]))
    ends = np.flatnonzero([last for _, _, _, last in TOKENS.steps(points)])
    far = np.linalg.norm(decoded[ends, :2] - points[:, :2], axis=1)
    assert (
        far.max() < 0.03
    )  # half a direction and half a radius of the longest step, wherever the word ends
    np.testing.assert_array_equal(decoded[ends, 2], pen)


def test_words_of_the_bank_do_not_drift(items: list[Item], tokens: Tokens) -> None:
    report = bank_report(items, tokens, 400)
    assert report["largest_drift"] <= 0.005
    assert report["items"] == len(items)
    with pytest.raises(InputError, match="more than the context of 40"):
        bank_report(items, tokens, 40)


def test_the_default_bank_is_the_same_every_time_and_written_by_several_hands(
    script: Script, items: list[Item]
) -> None:
    again = list(write_bank(script))
    assert all(np.array_equal(a.points, b.points) for a, b in zip(items, again, strict=True))
    assert len({item.author for item in items}) >= 3
    assert all(
        item.letters is not None and max(item.letters) == len(item.text) - 1 for item in items
    )
    slants = {}
    for item in items:
        down = np.diff(item.points[:, :2], axis=0)[item.points[1:, 2] == 1]
        slants.setdefault(item.author, []).append(
            (down[:, 0] * down[:, 1]).sum() / (down[:, 1] ** 2).sum()
        )
    means = [np.mean(values) for values in slants.values()]
    assert np.ptp(means) > 2 * np.std(slants[items[0].author]) / np.sqrt(
        len(slants[items[0].author])
    )


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["laptop", "long", "paper"])
def test_every_profiles_bank_is_large_enough_fits_its_model_and_does_not_drift(
    profile: str,
) -> None:
    settings = read_section("cursive_circuits", CursiveCircuits, profile)
    context = settings.configurations[settings.handwriting.configuration].context
    report = bank_report(list(write_bank(settings.bank.script)), settings.tokens, context)
    assert report["items"] >= 3000
    assert report["writers"] >= 3
    assert report["largest_drift"] <= 0.005


def test_a_simplified_stroke_is_within_its_tolerance() -> None:
    angle = np.linspace(0, 5, 80)
    curve = np.column_stack([angle, np.sin(2 * angle)])
    kept = simplified(curve, 0.1)
    assert len(kept) < 25
    for x, y in curve:
        assert abs(np.interp(x, kept[:, 0], kept[:, 1]) - y) < 0.25


def test_an_alphabet_that_is_too_small_is_named(script: Script) -> None:
    with pytest.raises(InputError, match="lower spellings or raise letters"):
        spellings(script.model_copy(update={"alphabet": " ab", "letters": (2, 2)}))


@pytest.mark.parametrize("name", ["bank.zip", "bank.json"])
def test_a_bank_comes_back_and_its_bytes_are_the_same(
    name: str, items: list[Item], tmp_path: Path
) -> None:
    path = tmp_path / name
    if name.endswith(".zip"):
        save_bank(path, items)
        before = file_sha256(path)
        save_bank(path, items)
        assert file_sha256(path) == before
    else:
        path.write_text(json.dumps([item.entry for item in items]))
    loaded = load_bank(path, alphabet=ALPHABET, sha256=file_sha256(path))
    for item, found in zip(items, loaded, strict=True):
        np.testing.assert_array_equal(item.points, found.points)
        assert (item.author, item.text, item.letters) == (found.author, found.text, found.letters)


def entry(**changes: Any) -> dict[str, Any]:
    metadata = {"author": "a", "asciiSequence": "ab", "aspectRatio": 6}
    points = [[0.0, 0.0, 1], [0.1, 0.1, 1], [0.1, 0.1, 0]]
    item = {"metadata": metadata, "points": points}
    return item | changes


def named(**changes: Any) -> dict[str, Any]:
    return entry(metadata=entry()["metadata"] | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "must be a JSON list"),
        ("[]", "holds no items"),
        (json.dumps([entry()])[:-20], "does not end"),
        (json.dumps([entry(points=[])]), "item 0: empty word"),
        (json.dumps([entry(), entry(points=[[0, 0]])]), "item 1: a point must be three numbers"),
        (json.dumps([entry(points=[[0, 0, "x"]])]), "three numbers"),
        (json.dumps([entry(points=[[0, float("nan"), 1]])]), "not a finite number"),
        (json.dumps([entry(points=[[0, 0, 2]])]), "pen must be 0 or 1"),
        (json.dumps([named(asciiSequence=" ")]), "empty word"),
        (json.dumps([named(author=3)]), "must be texts"),
        (
            json.dumps([named(asciiSequence="aB3")]),
            "'3' in 1 words, 'B' in 1 words; add them to `bank.alphabet`",
        ),
        (json.dumps([named(letterIndex=[0, 2, 1])]), "letterIndex"),
    ],
)
def test_a_bank_that_is_wrong_says_where(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bank.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_bank(tmp_path / "bank.json", alphabet=ALPHABET)


def zipped(path: Path, names: list[str], content: bytes = b"[]") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: zipped(path, ["../bank.json"]), "outside its own folder"),
        (lambda path: zipped(path, ["/etc/bank.json"]), "outside its own folder"),
        (lambda path: zipped(path, ["a.json", "b.json"]), "exactly one .json"),
        (
            lambda path: path.write_bytes(
                zipped(path, ["bank.json"], b"[1]" * 999).read_bytes()[:60]
            ),
            "is damaged",
        ),
    ],
)
def test_an_archive_that_is_not_trusted_is_refused(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "bank.zip")
    with pytest.raises(InputError, match=message):
        load_bank(tmp_path / "bank.zip", alphabet=ALPHABET)


def test_a_zip_whose_bytes_become_a_name_is_refused_in_one_short_line(
    items: list[Item], tmp_path: Path
) -> None:
    save_bank(tmp_path / "bank.zip", items)
    content = bytearray((tmp_path / "bank.zip").read_bytes())
    content[26:28] = (2000).to_bytes(2, "little")  # how long the first member's name is
    (tmp_path / "bank.zip").write_bytes(content)

    with pytest.raises(InputError) as problem:
        load_bank(tmp_path / "bank.zip", alphabet=ALPHABET)
    said = str(problem.value).removeprefix(str(tmp_path))
    assert said.startswith("/bank.zip is damaged (File name in directory 'bank.json' and header")
    assert said.endswith("): fetch or write it again")
    assert said.isprintable()
    assert len(said) < 400


def test_a_zip_bomb_is_refused_by_what_it_unpacks_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "bank.zip", ["bank.json"], b" " * 4_000_000)
    monkeypatch.setattr("cursive_circuits.data_bank.LARGEST", 3_000_000)
    with pytest.raises(InputError, match="unpacks to 4,000,000 bytes"):
        load_bank(path, alphabet=ALPHABET)
    plain = tmp_path / "bank.json"
    plain.write_bytes(b"[" + b" " * 4_000_000)
    with pytest.raises(InputError, match="more than 3,000,000 bytes"):
        load_bank(plain, alphabet=ALPHABET)


def test_a_missing_or_changed_bank_says_what_to_do(items: list[Item], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bank\.source"):
        load_bank(tmp_path / "none.zip", alphabet=ALPHABET)
    save_bank(tmp_path / "bank.zip", items[:3])
    with pytest.raises(InputError, match="its sha256 is"):
        load_bank(tmp_path / "bank.zip", alphabet=ALPHABET, sha256="0" * 64)
    with pytest.raises(InputError, match="needs a sha256"):
        fetch(Source(path="https://example.org/bank.zip", sha256=None), tmp_path)


@pytest.fixture
def served(items: list[Item], tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A bank behind an address of this machine, and its file."""
    folder = tmp_path / "served"
    folder.mkdir()
    save_bank(folder / "bank.zip", items[:3])
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))
    )
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder / "bank.zip"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_bank_is_fetched_once_and_kept_only_when_it_is_the_one_that_was_asked_for(
    served: tuple[str, Path], tmp_path: Path
) -> None:
    address, bank = served
    source = Source(path=f"{address}/bank.zip", sha256=file_sha256(bank))
    path = fetch(source, tmp_path)
    assert path.read_bytes() == bank.read_bytes()
    bank.write_bytes(b"another")
    assert fetch(source, tmp_path) == path
    assert len(load_bank(path, alphabet=ALPHABET, sha256=source.sha256)) == 3
    wrong = source.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(InputError, match=f"{address}/bank.zip: its sha256 is {file_sha256(bank)}"):
        fetch(wrong, tmp_path)
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch(Source(path=f"{address}/none.zip", sha256="1" * 64), tmp_path)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [path.name]


@pytest.mark.parametrize("sha256", ["../../thesis", "", "0" * 63, "g" * 64])
def test_a_hash_that_a_file_is_called_by_is_a_hash(sha256: str) -> None:
    with pytest.raises(ValidationError, match="String should match pattern"):
        Source(path="https://example.org/bank.zip", sha256=sha256)


def test_no_spelling_is_on_both_sides_of_the_split(
    items: list[Item], tokens: Tokens, section: CursiveCircuits
) -> None:
    training, held_out = Words.split(items, tokens, ALPHABET, section.bank.split)
    assert not {item.text for item in training.items} & {item.text for item in held_out.items}
    assert len(training.items) + len(held_out.items) == len(items)

    spelt = {item.text for item in items}
    share = len({item.text for item in held_out.items}) / len(spelt)
    assert share == pytest.approx(section.bank.split.held_out, abs=1 / len(spelt))
    with pytest.raises(InputError, match="no '!'"):
        training.text(["hi!"])


def test_training_rows_are_a_function_of_the_step_and_predict_strokes_alone(
    words: Words, section: CursiveCircuits
) -> None:
    mixture = section.handwriting.mixture
    source = WrittenRows(words, mixture, 4, 3, 0, 150)
    first = [source(step) for step in range(6)]
    again = WrittenRows(words, mixture, 4, 3, 0, 150)
    for step in (5, 0, 3):
        assert all(np.array_equal(a, b) for a, b in zip(first[step], again(step), strict=True))
        assert len(again.inputs(step)["text"]) == 4
    ids, labels = (np.concatenate([batch[i].numpy().ravel() for batch in first]) for i in (0, 1))
    assert not (labels == words.tokens.pad).any()
    assert (labels[ids < words.tokens.pad] != IGNORED).all()


def test_without_augmentation_a_word_is_as_its_writer_wrote_it(
    items: list[Item], section: CursiveCircuits
) -> None:
    plain = section.handwriting.mixture.model_copy(
        update={"jitter": 0.0, "slant": 0.0, "stretch": 0.0}
    )
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(augmented(items[0].points, plain, rng), items[0].points, atol=1e-12)
    assert (
        np.abs(augmented(items[0].points, section.handwriting.mixture, rng) - items[0].points).max()
        > 1e-4
    )


def test_every_copied_token_of_the_control_was_there_before_and_no_other_recurs(
    tokens: Tokens, section: CursiveCircuits
) -> None:
    copies = section.control.tiled.model_copy(update={"ordered": 0.0})
    ids, labels = (part.numpy() for part in TiledRows(tokens, copies, 16, 0)(3))
    for row, label in zip(ids, labels, strict=True):
        places = np.flatnonzero(label != IGNORED)
        assert len(places)
        for place in places:
            before = [
                t for t in range(3, place) if row[t] == row[place] and row[t - 1] == row[place - 1]
            ]
            assert before
        first = [t for t in range(2, len(row)) if row[t] not in row[2:t]]
        again = sorted({*range(2, len(row))} - {*first})
        assert {*again} - {*places} <= {
            t for t in again if row[t] < tokens.directions
        }  # a copy's first direction


def test_rows_of_the_control_that_have_an_order_follow_it(
    tokens: Tokens, section: CursiveCircuits
) -> None:
    changed = section.control.tiled.model_copy(
        update={"ordered": 0.999999, "order": 0.8, "pairs": 200}
    )
    ids, labels = (part.numpy() for part in TiledRows(tokens, changed, 64, 0)(3))
    assert (labels[:, 4:] == ids[:, 4:]).all()
    assert (labels[:, :4] == IGNORED).all()
    strokes = ids[:, 2:].reshape(64, 200, 2)
    for slot in (0, 1):
        before, after = strokes[:, :-1, slot].ravel(), strokes[:, 1:, slot].ravel()
        likeliest = [
            np.bincount(after[before == token]).max() / (before == token).sum()
            for token in np.unique(before)
        ]
        assert np.mean(likeliest) == pytest.approx(0.8, abs=0.03)


def test_the_first_steps_and_a_share_of_the_others_are_drill_and_the_rest_are_as_without(
    words: Words, section: CursiveCircuits
) -> None:
    settings = section.handwriting
    written = WrittenRows(words, settings.mixture, 3, settings.dealt, 0, 200)
    tiled = TiledRows(words.tokens, section.control.tiled, 5, 0)
    mixed = DrilledRows(written, tiled, Drill(first=10, share=0.3))
    chosen = np.array([len(mixed(step)[0]) == 5 for step in range(50)])
    assert chosen[:10].all()
    assert chosen[10:].sum() == 12
    assert max(np.diff(np.flatnonzero(chosen[10:]))) <= 4
    for step, instead in enumerate(chosen):
        source = tiled if instead else written
        torch.testing.assert_close(mixed(step)[0], source(step)[0])
        assert mixed.inputs(step).keys() == source.inputs(step).keys()
    none = DrilledRows(written, tiled, Drill(first=0, share=0.0))
    assert all(len(none(step)[0]) == 3 for step in range(8))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_right_answers_and_its_control_has_none(name: str, words: Words) -> None:
    stimuli = family(name, words, n=8, seed=1, settings=SIZES)
    prompts, pairs = stimuli.prompts, stimuli.prompts.pairs
    tokens, control = prompts.tokens, prompts.control
    assert set(pairs.batch) == set(range(8))
    assert (pairs.earlier < pairs.query - 1).all()
    np.testing.assert_array_equal(tokens[pairs.batch, pairs.query + 1], pairs.target)
    assert tokens.shape == control.shape
    np.testing.assert_array_equal(control[pairs.batch, pairs.query + 1], pairs.target)
    assert (pairs.query % 2 == pairs.earlier % 2).all()
    if name != "other_writer":
        np.testing.assert_array_equal(
            tokens[pairs.batch, pairs.earlier], tokens[pairs.batch, pairs.query]
        )
        np.testing.assert_array_equal(tokens[pairs.batch, pairs.earlier + 1], pairs.target)
        kept = (control[pairs.batch, pairs.earlier + 1] == pairs.target) & (
            control[pairs.batch, pairs.earlier] == tokens[pairs.batch, pairs.query]
        )
        assert kept.mean() < 0.05
    if name == "synthetic":
        assert (oracle(tokens, pairs) == pairs.target).mean() > 0.8


def test_natural_rows_whose_text_the_model_cannot_read_are_drawn_again(words: Words) -> None:
    def natural(characters: int) -> Stimuli:
        sizes = replace(SIZES, characters=characters)
        return family("natural", words, n=12, seed=1, settings=sizes)

    whole = natural(500)
    longest = whole.text.shape[1]
    np.testing.assert_array_equal(natural(longest).prompts.tokens, whole.prompts.tokens)
    assert natural(longest - 1).text.shape[1] < longest
    with pytest.raises(InputError, match=r"a text of 5 characters; lower stimuli.natural_words"):
        natural(5)


def test_texts_match_mismatch_or_are_none(words: Words) -> None:
    same, wrong = (
        family(name, words, n=8, seed=1, settings=SIZES)
        for name in ("same_text", "mismatched_text")
    )
    for stimuli, equal in ((same, True), (wrong, False)):
        halves = []
        for row in stimuli.text:
            said = "".join(ALPHABET[i - 1] for i in row if i)
            first, second = said.split(" ")
            halves.append(first == second)
        assert all(halves) is equal
    np.testing.assert_array_equal(same.prompts.tokens[:, :2], wrong.prompts.tokens[:, :2])


def test_warping_matches_a_curve_with_itself_at_another_speed() -> None:
    angle = np.linspace(0, 6, 30)
    slow = np.column_stack([angle, np.sin(angle), np.ones(30)])
    fast = slow[::2]
    off = np.abs(warped(fast, slow)[1:-1] - np.arange(2, 28, 2))
    assert off.max() <= 1
    assert off.mean() < 0.2
