"""Banks of handwriting: JSON, plain or in a zip, read item by item and checked before anything
believes it.

    [{"metadata": {"author": "hand-3", "asciiSequence": "anna",
                   "pointCount": 42, "strokeCount": 3, "aspectRatio": 6},
      "points": [[x, y, pen], ...]}, ...]

The format is the public cursive bank's. x is in canvas widths and y in canvas heights, y down;
aspectRatio is the canvas's width over its height. pen is 1 while a stroke is drawn and 0 at its
end, which repeats the point before it: from there the pen travels to the next stroke. A bank that
knows its letters names each point's in metadata.letterIndex.

Inside this program (`Item`) x and y are in canvas heights, no point is repeated, and pen is 1 where
the pen draws to the point and 0 where it moves there. What a file says of itself is checked against
its points.
"""

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from pydantic import Field

from cursive_circuits.data_tokens import Points
from interp_core.errors import InputError, first_line
from interp_core.files.artifacts import BROKEN_ARCHIVE, file_sha256, replacing
from interp_core.files.params import Params
from interp_core.files.sums import check_sum

_SEPARATORS = re.compile(r"[ \t\r\n,]*")
LARGEST = 2**30  # bytes of an unpacked bank
CHUNK = 1 << 16
# width over height of the default bank's canvas; a power of two, so that x comes back to the last
# bit
CANVAS = 8.0
BEYOND = 2.0  # canvases: ink that reaches further is not in canvas widths and heights
WIDEST = 1e6  # width over height: more is no canvas
PIXELS = 20.0  # ink that reaches so far is in pixels


class Source(Params):
    """Where a bank of somebody's own comes from.

    The public cursive data has no licence, so it is not shipped here.
    """

    path: str  # a file, or an address that begins with https:// or http://
    # Of the file; needed for an address. A downloaded file is called by it.
    sha256: str | None = Field(pattern="^[0-9a-fA-F]{64}$")


@dataclass(frozen=True, eq=False)
class Item:
    """One word by one writer."""

    author: str
    text: str
    points: Points
    letters: (
        tuple[int, ...] | None
    )  # for each point the number of its letter, where the bank knows it

    @property
    def entry(self) -> dict[str, Any]:
        """The item in the public format."""
        points, owners = published(self.points)
        known = (
            {}
            if self.letters is None
            else {"letterIndex": [self.letters[owner] for owner in owners]}
        )
        metadata = {
            "author": self.author,
            "asciiSequence": self.text,
            "pointCount": len(points),
            "strokeCount": int((points[:, 2] == 0).sum()),
            "aspectRatio": CANVAS,
            **known,
        }
        return {"metadata": metadata, "points": (points / [CANVAS, 1.0, 1.0]).tolist()}


def published(points: Points) -> tuple[Points, Int[np.ndarray, " published"]]:
    """Points with the public pen, each stroke's last one repeated with pen 0; and for each the
    point that it is.
    """
    begins = points[:, 2] == 0
    begins[0] = True
    ends = np.append(begins[1:], True)

    owners = np.repeat(np.arange(len(points)), 1 + ends)
    repeated = np.append(False, owners[1:] == owners[:-1])
    return np.column_stack([points[owners, :2], np.where(repeated, 0.0, 1.0)]), owners


def from_published(points: Points) -> tuple[Points, Bool[np.ndarray, " published"]]:
    """Points with our pen: those that end a stroke are left out, those after them are moved to; and
    which are kept.
    """
    kept = points[:, 2] == 1
    begins = np.append(True, ~kept[:-1])
    return np.column_stack([points[:, :2], np.where(begins, 0.0, 1.0)])[kept], kept


def save_bank(path: Path, items: Iterable[Item]) -> None:
    """The items as bank.json inside a zip: equal items, equal bytes.

    Times are fixed, and nothing is compressed: what deflate writes depends on the zlib that a
    system's Python was built with.
    """
    with replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
        entry = zipfile.ZipInfo("bank.json", date_time=(1980, 1, 1, 0, 0, 0))
        with archive.open(entry, "w") as written:
            for number, item in enumerate(items):
                text = json.dumps(item.entry, separators=(",", ":"))
                written.write(("[\n" if number == 0 else ",\n").encode() + text.encode())
            written.write(b"\n]\n")


def load_bank(path: Path, *, alphabet: str, sha256: str | None = None) -> list[Item]:
    """Every item of a bank, checked.

    InputError, naming the file and where possible the item, for a file that is missing, has another
    sha256, is no zip or a truncated one, names a path outside its folder, unpacks to more than 1
    GiB, is no JSON list of items, or holds an item with wrong types, numbers that are not finite,
    no points, no text, what contradicts its own metadata, or characters outside the alphabet (all
    of which are listed).
    """
    items = read_bank(path, sha256=sha256)
    if unknown := outside(items, alphabet):
        raise InputError(
            f"{path}: characters outside the alphabet: {told(unknown)}; {ALPHABET_KEY}"
        )
    return items


ALPHABET_KEY = "add them to `bank.alphabet` of the profile"


def read_bank(path: Path, *, sha256: str | None = None) -> list[Item]:
    """Every item of a bank, checked but for its alphabet. Errors as `load_bank`."""
    if not path.is_file():
        raise InputError(
            f"no bank at {path}: `cursive-circuits prepare` writes the default one; a bank of your "
            "own is named by "
            "--bank or by `bank.source` in the profile (the public cursive data has no licence and "
            "is not shipped: ask its authors)"
        )
    if sha256 is not None:
        _check(path, sha256, str(path))
    check_sum(path, again="`cursive-circuits prepare` writes it again")
    with _opened(path) as stream:
        read = [
            _item(entry, f"{path}: item {number}")
            for number, entry in enumerate(_entries(stream, path))
        ]
    if not read:
        raise InputError(f"{path}: holds no items")

    items = [item for item, _ in read]
    _of_canvases(items, [ratio for _, ratio in read], path)
    return items


def outside(items: Iterable[Item], alphabet: str) -> Counter[str]:
    """Characters that are not in the alphabet, and in how many words each stands."""
    return Counter(character for item in items for character in set(item.text) - set(alphabet))


def told(unknown: Counter[str]) -> str:
    """Characters and counts, in a line."""
    return ", ".join(
        f"{character!r} in {count} words" for character, count in sorted(unknown.items())
    )


def _check(path: Path, sha256: str, name: str) -> None:
    if (found := file_sha256(path)) != sha256.lower():
        raise InputError(
            f"{name}: its sha256 is {found}, not {sha256}: fetch it again or mend the profile"
        )


def fetch(source: Source, folder: Path) -> Path:
    """The source's file, downloaded into `folder` when it is an address.

    InputError when that fails, is too big, or is not what the sha256 says.
    """
    if not source.path.startswith(("https://", "http://")):
        return Path(source.path)
    if source.sha256 is None:
        raise InputError(f"{source.path}: an address needs a sha256 beside it in the profile")
    from urllib.error import URLError
    from urllib.request import urlopen

    target = folder / f"{source.sha256}{PurePosixPath(source.path).suffix}"
    if target.is_file():
        return target
    try:
        with (
            urlopen(source.path, timeout=20) as answer,
            replacing(target) as part,
            part.open("wb") as written,
        ):
            for chunk in _chunks(answer, f"{source.path}"):
                written.write(chunk)
            written.flush()
            _check(part, source.sha256, source.path)
    except (URLError, TimeoutError) as problem:
        raise InputError(
            f"{source.path}: cannot be fetched ({first_line(problem)}); download it and name the "
            "file"
        ) from None
    return target


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """The JSON inside the file."""
    with path.open("rb") as opened:
        zipped = opened.read(2) == b"PK"
        opened.seek(0)
        if not zipped:
            yield opened
            return
        try:
            with zipfile.ZipFile(opened) as archive, archive.open(_member(archive, path)) as inside:
                yield io.BufferedReader(inside)  # pyright: ignore[reportArgumentType]
        except BROKEN_ARCHIVE as problem:
            if isinstance(problem, InputError):
                raise
            raise InputError(
                f"{path} is damaged ({first_line(problem)}): fetch or write it again"
            ) from None


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    """The one JSON file of an archive."""
    names = [entry.filename for entry in archive.infolist()]
    for name in names:
        if (
            name.startswith(("/", "\\"))
            or ".." in name.replace("\\", "/").split("/")
            or ":" in name
        ):
            raise InputError(f"{path}: refused, it names {name!r}, a place outside its own folder")
    if (total := sum(entry.file_size for entry in archive.infolist())) > LARGEST:
        raise InputError(f"{path}: refused, it unpacks to {total:,} bytes, more than {LARGEST:,}")
    # What macOS puts beside each file of a zip: __MACOSX/._bank.json is no bank.
    parts = {name: PurePosixPath(name).parts for name in names}
    own = [
        name
        for name in names
        if "__MACOSX" not in parts[name] and not parts[name][-1].startswith("._")
    ]

    inside = [name for name in own if name.endswith(".json")]
    if len(inside) != 1:
        raise InputError(f"{path}: needs exactly one .json inside, found {len(inside)}")
    return inside[0]


def _chunks(stream: Any, what: str) -> Iterator[bytes]:
    """Bytes until the end or LARGEST: what a header says of its size proves nothing."""
    total = 0
    while chunk := stream.read(CHUNK):
        total += len(chunk)
        if total > LARGEST:
            raise InputError(f"{what}: refused, it holds more than {LARGEST:,} bytes")
        yield chunk


def _entries(stream: io.BufferedReader, path: Path) -> Iterator[Any]:
    """The elements of a JSON list, one at a time: a large bank is never in memory as text."""
    import codecs

    decoder, text, pieces = json.JSONDecoder(), "", _chunks(stream, str(path))
    utf8 = codecs.getincrementaldecoder("utf-8-sig")()  # with a byte order mark or without
    begun = ended = False
    enough = 0  # characters at which an element that did not end is tried again
    try:
        for piece in chain(pieces, [b""]):
            text += utf8.decode(piece, final=not piece)
            if not begun:
                text = text.lstrip()
                if not text:
                    continue
                if text[0] != "[":
                    raise InputError(f"{path}: not a bank: it must be a JSON list of items")
                text, begun = text[1:], True
            # Tried at every piece, an element that never ends would cost the square of its length.
            if len(text) < enough and piece:
                continue
            at = 0
            while not ended:
                at = _SEPARATORS.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]
                if text.startswith("]", at):
                    ended = True
                    break
                try:
                    value, at = decoder.raw_decode(text, at)
                except json.JSONDecodeError:
                    break  # the element goes on in the next piece
                yield value
            text = text[at:]
            enough = 2 * len(text)
    except UnicodeDecodeError as problem:
        raise InputError(f"{path}: not UTF-8 text ({problem.reason})") from None
    except (RecursionError, ValueError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"{path}: no item of a bank: {first_line(problem)}") from None
    if not ended:
        raise InputError(
            f"{path} is damaged: the JSON list of items does not end, or is no JSON: {text[:40]!r}"
        )


def _item(entry: Any, where: str) -> tuple[Item, float]:
    """One checked item, and its canvas's width over height."""
    if not isinstance(entry, dict) or not isinstance(entry.get("metadata"), dict):
        raise InputError(f"{where}: needs `metadata` and `points`")
    author, text = (entry["metadata"].get(key) for key in ("author", "asciiSequence"))
    if not isinstance(author, str) or not isinstance(text, str):
        raise InputError(f"{where}: metadata.author and metadata.asciiSequence must be texts")
    if not text.strip():
        raise InputError(f"{where}: empty word")
    raw = _points(entry.get("points"), where)
    ratio = _agreed_ratio(raw, entry["metadata"], where)

    points, kept = from_published(raw * [ratio, 1.0, 1.0])
    if len(points) == 0:
        raise InputError(f"{where}: empty word, it has no points with the pen down")

    letters = entry["metadata"].get("letterIndex")
    if letters is None:
        return Item(author, text, points, None), ratio
    whole = isinstance(letters, list) and all(type(number) is int for number in letters)
    if (
        not whole
        or len(letters) != len(raw)
        or not all(0 <= number < len(text) for number in letters)
    ):
        raise InputError(
            f"{where}: metadata.letterIndex must name a letter of {text!r} for each point"
        )
    return Item(author, text, points, tuple(np.array(letters)[kept].tolist())), ratio


def _agreed_ratio(points: Points, metadata: dict[str, Any], where: str) -> float:
    """The canvas's width over height.

    InputError where points contradict what the item says of itself, or what the format means.
    """
    ratio: Any = metadata.get("aspectRatio")
    if type(ratio) not in (int, float) or not 0 < ratio < WIDEST:
        raise InputError(
            f"{where}: metadata.aspectRatio must be the width of the canvas over its height, got "
            f"{ratio!r}: x is in "
            "canvas widths"
        )
    _on_the_canvas(points, where)

    lifted = np.flatnonzero(points[:, 2] == 0)
    moved = [
        int(i) for i in lifted if i == 0 or not np.array_equal(points[i, :2], points[i - 1, :2])
    ]
    if moved:
        raise InputError(
            f"{where}: point {moved[0]} has pen 0 and is not the point before it: pen 0 ends a "
            "stroke and repeats its "
            "last point; a pen that moves there draws nothing, and needs no point"
        )

    counted = {"pointCount": len(points), "strokeCount": len(lifted) + int(points[-1, 2] == 1)}
    for key, found in counted.items():
        if key in metadata and metadata[key] != found:
            raise InputError(
                f"{where}: metadata.{key} is {metadata[key]!r}, and its points are {found}"
            )
    return float(ratio)


def _on_the_canvas(points: Points, where: str) -> None:
    furthest = float(np.abs(points[:, :2]).max())
    if furthest > PIXELS:
        raise InputError(
            f"{where}: its points reach {furthest:g}, so they are in pixels: divide x by the "
            "canvas's width in pixels "
            "and y by its height"
        )
    if furthest > BEYOND:
        raise InputError(
            f"{where}: its points reach {furthest:g}: x must be in canvas widths, y in canvas "
            "heights"
        )


def _of_canvases(items: Sequence[Item], ratios: Sequence[float], path: Path) -> None:
    """InputError where aspectRatio is the width over the height of every item's ink: x was then
    never in widths.
    """
    for item, ratio in zip(items, ratios, strict=True):
        width, height = np.ptp(item.points[:, :2], axis=0)
        if height == 0 or abs(width / height - ratio**2) > 1e-3 * ratio**2:
            return

    raise InputError(
        f"{path}: metadata.aspectRatio is the ink's own width over height; it must be the "
        "canvas's, with x in canvas "
        "widths"
    )


def _points(raw: Any, where: str) -> Points:
    if not isinstance(raw, list) or not raw:
        raise InputError(f"{where}: empty word, it has no points")
    for point in raw:
        if (
            not isinstance(point, list)
            or len(point) != 3
            or any(type(value) not in (int, float) for value in point)
        ):
            raise InputError(
                f"{where}: a point must be three numbers [x, y, pen], got {str(point)[:60]}"
            )
    try:
        points = np.array(raw, dtype=np.float64)
    except OverflowError:
        raise InputError(f"{where}: a coordinate is no number of 64 bits") from None
    if not np.isfinite(points).all():
        raise InputError(f"{where}: a coordinate is not a finite number")
    if not np.isin(points[:, 2], (0, 1)).all():
        raise InputError(f"{where}: pen must be 0 or 1")
    return points
