"""Banks of handwriting: JSON, plain or in a zip, read item by item and checked before anything
believes it.

    [{"metadata": {"author": "hand-3", "asciiSequence": "anna", "pointCount": 42, "strokeCount": 3, "aspectRatio": 1.9},
      "points": [[x, y, pen], ...]}, ...]

x and y are in canvas heights, y down; pen is 1 where the pen draws to the point and 0 where it
moves there. A bank that knows which letter each point belongs to says so in metadata.letterIndex.
"""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pydantic import Field

from cursive_circuits.data_tokens import Points
from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256, replacing
from interp_core.files.params import Params

LARGEST = 2**30  # bytes of an unpacked bank
CHUNK = 1 << 16


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
    def metadata(self) -> dict[str, Any]:
        """What the public format says of an item."""
        spread = np.ptp(self.points[:, :2], axis=0)
        known = {} if self.letters is None else {"letterIndex": list(self.letters)}
        return {
            "author": self.author,
            "asciiSequence": self.text,
            "pointCount": len(self.points),
            "strokeCount": int((self.points[:, 2] == 0).sum()),
            "aspectRatio": round(float(spread[0] / max(spread[1], 1e-9)), 5),
            **known,
        }


def save_bank(path: Path, items: Iterable[Item]) -> None:
    """The items as bank.json inside a zip, with fixed times: equal items, equal bytes."""
    with replacing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo("bank.json", date_time=(1980, 1, 1, 0, 0, 0))
        entry.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(entry, "w") as written:
            for number, item in enumerate(items):
                content = {"metadata": item.metadata, "points": item.points.tolist()}
                text = json.dumps(content, separators=(",", ":"))
                written.write(("[\n" if number == 0 else ",\n").encode() + text.encode())
            written.write(b"\n]\n")


def load_bank(path: Path, *, alphabet: str, sha256: str | None = None) -> list[Item]:
    """Every item of a bank, checked.

    InputError, naming the file and where possible the item, for a file that is missing, has another
    sha256, is no zip or a truncated one, names a path outside its folder, unpacks to more than 1
    GiB, is no JSON list of items, or holds an item with wrong types, numbers that are not finite,
    no points, no text, or characters outside the alphabet (all of which are listed).
    """
    if not path.is_file():
        raise InputError(
            f"no bank at {path}: `cursive-circuits prepare` writes the default one; a bank of your "
            "own is named by "
            "`bank.source` in the profile (the public cursive data has no licence and is not "
            "shipped: ask its authors)"
        )
    if sha256 is not None:
        _check(path, sha256, str(path))
    items: list[Item] = []
    unknown: Counter[str] = Counter()
    with _opened(path) as stream:
        for number, entry in enumerate(_entries(stream, path)):
            item = _item(entry, f"{path}: item {number}")
            unknown.update(set(item.text) - set(alphabet))
            items.append(item)
    if unknown:
        listed = ", ".join(
            f"{character!r} in {count} words" for character, count in sorted(unknown.items())
        )
        raise InputError(
            f"{path}: characters outside the alphabet: {listed}; add them to `script.alphabet`"
        )
    if not items:
        raise InputError(f"{path}: holds no items")
    return items


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
            f"{source.path}: cannot be fetched ({problem}); download it and name the file"
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
        except (zipfile.BadZipFile, EOFError) as problem:
            raise InputError(f"{path} is damaged ({problem}): fetch or write it again") from None


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
    inside = [name for name in names if name.endswith(".json")]
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
    """The elements of a JSON list, one at a time, so that a large bank is never in memory as text."""
    import codecs

    decoder, text, pieces = json.JSONDecoder(), "", _chunks(stream, str(path))
    utf8 = codecs.getincrementaldecoder("utf-8")()
    begun = ended = False
    try:
        for piece in pieces:
            text += utf8.decode(piece)
            if not begun:
                text = text.lstrip()
                if not text:
                    continue
                if text[0] != "[":
                    raise InputError(f"{path}: not a bank: it must be a JSON list of items")
                text, begun = text[1:], True
            while not ended:
                text = text.lstrip(" \t\r\n,")
                if text.startswith("]"):
                    ended = True
                    break
                try:
                    value, after = decoder.raw_decode(text)
                except json.JSONDecodeError:
                    break  # the element goes on in the next piece
                text = text[after:]
                yield value
    except UnicodeDecodeError as problem:
        raise InputError(f"{path}: not UTF-8 text ({problem.reason})") from None
    if not ended:
        raise InputError(
            f"{path} is damaged: the JSON list of items does not end, or is no JSON: {text[:40]!r}"
        )


def _item(entry: Any, where: str) -> Item:
    """One checked item."""
    if not isinstance(entry, dict) or not isinstance(entry.get("metadata"), dict):
        raise InputError(f"{where}: needs `metadata` and `points`")
    author, text = (entry["metadata"].get(key) for key in ("author", "asciiSequence"))
    if not isinstance(author, str) or not isinstance(text, str):
        raise InputError(f"{where}: metadata.author and metadata.asciiSequence must be texts")
    if not text.strip():
        raise InputError(f"{where}: empty word")
    points = _points(entry.get("points"), where)
    letters = entry["metadata"].get("letterIndex")
    if letters is not None:
        whole = isinstance(letters, list) and all(type(number) is int for number in letters)
        if (
            not whole
            or len(letters) != len(points)
            or not all(0 <= number < len(text) for number in letters)
        ):
            raise InputError(
                f"{where}: metadata.letterIndex must name a letter of {text!r} for each point"
            )
    return Item(author, text, points, None if letters is None else tuple(letters))


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
    points = np.array(raw, dtype=np.float64)
    if not np.isfinite(points).all():
        raise InputError(f"{where}: a coordinate is not a finite number")
    if not np.isin(points[:, 2], (0, 1)).all():
        raise InputError(f"{where}: pen must be 0 or 1")
    return points
