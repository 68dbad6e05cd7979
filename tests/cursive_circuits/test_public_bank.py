"""The public cursive bank's format, on two items made by hand: what its numbers mean, and what
contradicts them.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cursive_circuits.data_bank import Item, load_bank, published, save_bank
from cursive_circuits.data_taken import Published, take, thinned
from cursive_circuits.data_tokens import Tokens
from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256

ALPHABET = " abcdefghijklmnopqrstuvwxyz"

# An i on a canvas six times as wide as high: a stroke of three points, then its dot. The pen is at
# 1 while it draws; the last point of each stroke is there twice, the second time with the pen at 0.
I_POINTS = [
    [0.10, 0.60, 1],
    [0.11, 0.50, 1],
    [0.12, 0.60, 1],
    [0.12, 0.60, 0],
    [0.11, 0.35, 1],
    [0.11, 0.36, 1],
    [0.11, 0.36, 0],
]
# An l in one stroke.
L_POINTS = [[0.20, 0.60, 1], [0.25, 0.20, 1], [0.20, 0.65, 1], [0.20, 0.65, 0]]


def of(text: str, points: list[list[float]], **changes: Any) -> dict[str, Any]:
    metadata = {
        "author": "Ann",
        "asciiSequence": text,
        "pointCount": len(points),
        "strokeCount": sum(point[2] == 0 for point in points),
        "aspectRatio": 6,
    }
    return {"metadata": metadata | changes, "points": points}


def two() -> list[dict[str, Any]]:
    return [of("i", I_POINTS), of("l", L_POINTS)]


def put(path: Path, content: list[dict[str, Any]], *, mark: bytes = b"") -> Path:
    """A zip as macOS makes it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bank.json", mark + json.dumps(content).encode())
        archive.writestr("__MACOSX/._bank.json", bytes(range(219)))
    return path


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_x_is_in_canvas_widths_and_a_lift_is_no_ink(mark: bytes, tmp_path: Path) -> None:
    i, stem = load_bank(put(tmp_path / "bank.zip", two(), mark=mark), alphabet=ALPHABET)
    assert (i.author, i.text, i.letters) == ("Ann", "i", None)
    by_hand = [[0.60, 0.60, 0], [0.66, 0.50, 1], [0.72, 0.60, 1], [0.66, 0.35, 0], [0.66, 0.36, 1]]
    np.testing.assert_allclose(i.points, by_hand, atol=1e-12)
    np.testing.assert_allclose(
        stem.points, [[1.2, 0.6, 0], [1.5, 0.2, 1], [1.2, 0.65, 1]], atol=1e-12
    )

    # The length of what is drawn, without the way from the stem to its dot.
    steps = np.hypot(*np.diff(i.points[:, :2], axis=0).T)
    assert steps[i.points[1:, 2] == 1].sum() == pytest.approx(2 * np.hypot(0.06, 0.1) + 0.01)


def test_what_is_written_means_the_same_as_what_is_read(tmp_path: Path) -> None:
    points, owners = published(np.array([[0.6, 0.6, 0], [0.7, 0.5, 1], [0.66, 0.35, 0]]))
    np.testing.assert_array_equal(owners, [0, 1, 1, 2, 2])
    np.testing.assert_array_equal(points[:, 2], [1, 1, 0, 1, 0])

    items = load_bank(put(tmp_path / "public.zip", two()), alphabet=ALPHABET)
    items = [Item(item.author, item.text, item.points, (0,) * len(item.points)) for item in items]
    save_bank(tmp_path / "ours.zip", items)
    for item, again in zip(items, load_bank(tmp_path / "ours.zip", alphabet=ALPHABET), strict=True):
        np.testing.assert_array_equal(item.points, again.points)
        assert item.letters == again.letters

    with zipfile.ZipFile(tmp_path / "ours.zip") as archive:
        content = json.loads(archive.read("bank.json"))
    for mine, theirs in zip(content, two(), strict=True):
        width = mine["metadata"].pop("aspectRatio")
        assert mine["metadata"].pop("letterIndex") == [0] * len(theirs["points"])
        assert mine["metadata"].items() <= theirs["metadata"].items()
        scaled = np.array(mine["points"]) * [width / 6, 1, 1]
        np.testing.assert_allclose(scaled, theirs["points"], atol=1e-12)


def moved(points: list[list[float]]) -> list[list[float]]:
    """The same strokes with pen 0 for `the pen moves here`."""
    return [[x, y, float(order > 0)] for order, (x, y, _) in enumerate(points[:3])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [of("i", I_POINTS, pointCount=6)],
            "item 0: metadata.pointCount is 6, and its points are 7",
        ),
        (
            [of("i", I_POINTS, strokeCount=1)],
            "item 0: metadata.strokeCount is 1, and its points are 2",
        ),
        (
            [of("i", I_POINTS, aspectRatio=None)],
            "item 0: metadata.aspectRatio must be the width of the canvas",
        ),
        ([of("i", I_POINTS, aspectRatio=0)], "item 0: metadata.aspectRatio must be"),
        (
            [of("l", L_POINTS), of("l", moved(L_POINTS))],
            "item 1: point 0 has pen 0 and is not the point before it",
        ),
        (
            [of("l", [[600 * x, 100 * y, pen] for x, y, pen in L_POINTS])],
            "item 0: its points reach 150, .* in pixels",
        ),
        (
            [of("l", [[12 * x, y, pen] for x, y, pen in L_POINTS])],
            "item 0: its points reach 3: x must be in canvas",
        ),
        (
            [of("l", L_POINTS, aspectRatio=0.05 / 0.45)],
            "aspectRatio is the ink's own width over height",
        ),
        ([of("l", [[0.1, 0.1, 0]])], "item 0: point 0 has pen 0"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    content: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_bank(put(tmp_path / "bank.zip", content), alphabet=ALPHABET)


PUBLISHED = Published(dropped=0.65, slant=0.0)
TOKENS = Tokens(
    directions=72, radii=32, smallest_radius=0.005, largest_radius=0.4, origin=(0.0, 0.6)
)


def line(points: int, text: str) -> Item:
    """A stroke of so many points, and a second of three."""
    first = np.column_stack(
        [np.linspace(0, 2, points), np.full(points, 0.5), np.arange(points) > 0]
    )
    second = np.array([[0.5, 0.2, 0], [0.6, 0.2, 1], [0.7, 0.2, 1]])
    return Item("Ann", text, np.concatenate([first, second]), None)


@pytest.mark.parametrize(("points", "left"), [(100, 35), (20, 7), (5, 2), (2, 2)])
def test_a_share_of_each_strokes_points_is_left_out_and_its_ends_stay(
    points: int, left: int
) -> None:
    item = thinned(line(points, "a"), 0.65)
    first, second = item.points[:-2], item.points[-2:]
    assert len(first) == left
    np.testing.assert_array_equal(first[[0, -1]], line(points, "a").points[[0, points - 1]])
    np.testing.assert_array_equal(second, [[0.5, 0.2, 0], [0.7, 0.2, 1]])
    steps = np.diff(first[:, 0]) / (2 / (points - 1))
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert np.ptp(steps) < 1.5  # evenly: neighbouring gaps differ by a point at most


def test_letters_go_with_their_points_and_a_word_leans_by_its_height() -> None:
    item = line(20, "ab")
    item = Item(item.author, item.text, item.points, (0,) * 20 + (1,) * 3)
    (taken,) = take([item], **settings_of(slant=-0.2)).items
    assert taken.letters == (0,) * 7 + (1,) * 2
    upright = thinned(item, 0.65).points
    np.testing.assert_allclose(taken.points[:, 0], upright[:, 0] - 0.2 * upright[:, 1])
    np.testing.assert_array_equal(taken.points[:, 1:], upright[:, 1:])


def settings_of(*, context: int = 200, slant: float = 0.0) -> dict[str, Any]:
    published = PUBLISHED.model_copy(update={"slant": slant})
    return {
        "alphabet": ALPHABET,
        "tokens": TOKENS,
        "context": context,
        "characters": 50,
        "published": published,
        "name": "bank.zip",
    }


def test_words_that_do_not_fit_are_left_out_and_counted() -> None:
    items = [
        line(20, "ann"),
        line(20, "Bob"),
        line(20, "it's"),
        line(2000, "long"),
        line(20, "ann's"),
        line(20, "n" * 25),
        line(20, "n" * 24),
    ]
    taken = take(items, **settings_of())
    assert [item.text for item in taken.items] == ["ann", "n" * 24]
    assert taken.report == {
        "read": 7,
        "beyond_context": 1,
        "beyond_text": 1,
        "outside_alphabet": 3,
        "unknown": {"'": 2, "B": 1},
    }
    letters, words, texts = taken.told
    assert "3 of 7 words" in letters
    assert "`bank.alphabet`" in letters
    assert "1 of 7 words" in words
    assert "`context`" in words
    assert "1 of 7 words" in texts
    assert "`characters`" in texts
    with pytest.raises(
        InputError, match="no word is left: 1 of 1 words are left out for characters"
    ):
        take([items[1]], **settings_of())
    with pytest.raises(InputError, match=r"no word is left: 1 of 1 .* `characters` takes them in"):
        take([items[5]], **settings_of())


def test_a_banks_bytes_are_those_of_every_python_and_zlib(tmp_path: Path) -> None:
    points = np.array([[0.0, 0.5, 0.0], [0.25, 0.5, 1.0], [0.5, 1.0, 1.0]])
    save_bank(tmp_path / "bank.zip", [Item("Ann", "i", points, None)] * 2)

    # No file of ours is compressed, and no header forced: see `save_arrays`.
    expected = "f5783c94e33aa61aae29a64cd69b4b8c3cba9ce79408176eb9e057e4bb0338e9"
    assert file_sha256(tmp_path / "bank.zip") == expected
