"""What can happen to a file: by a disk, by a transfer that was cut, by a hand."""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Damage = Callable[[Path, Random], None]


def flip(path: Path, rng: Random) -> None:
    """One to eight bits the other way."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8))):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def flip_early(path: Path, rng: Random) -> None:
    """The same where headers are."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8))):
        if content:
            content[rng.randrange(min(400, len(content)))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: Random) -> None:
    """A transfer that ended early."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))] if content else b"")


def cut_end(path: Path, rng: Random) -> None:
    """The same in its last bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: -rng.randrange(1, 40)])


def zero(path: Path, rng: Random) -> None:
    """A block that was never written to the disk."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content) + 1)
    length = min(len(content) - start, rng.choice((1, 16, 512, 4096)))
    content[start : start + length] = bytes(length)
    path.write_bytes(content)


def repeat(path: Path, rng: Random) -> None:
    """A block twice."""
    content = path.read_bytes()
    start = rng.randrange(len(content) + 1)
    length = rng.choice((1, 8, 100, 1000))
    path.write_bytes(content[: start + length] + content[start:])


def insert(path: Path, rng: Random) -> None:
    """Bytes of something else in the middle."""
    content = path.read_bytes()
    start = rng.randrange(len(content) + 1)
    path.write_bytes(content[:start] + rng.randbytes(rng.choice((1, 3, 64))) + content[start:])


def empty(path: Path, _rng: Random) -> None:
    """Nothing left."""
    path.write_bytes(b"")


def noise(path: Path, rng: Random) -> None:
    """As many random bytes."""
    path.write_bytes(rng.randbytes(len(path.read_bytes())))


def page(path: Path, _rng: Random) -> None:
    """What a proxy says instead of the file."""
    path.write_text("<!DOCTYPE html><html><title>403 Forbidden</title></html>\n")


def pointer(path: Path, _rng: Random) -> None:
    """What a clone without Git LFS has."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def dangling(path: Path, _rng: Random) -> None:
    """A link to nowhere."""
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def circle(path: Path, _rng: Random) -> None:
    """A link to itself."""
    path.unlink()
    path.symlink_to(path)


def folder(path: Path, _rng: Random) -> None:
    """A folder of that name."""
    path.unlink()
    path.mkdir()


def missing(path: Path, _rng: Random) -> None:
    """Gone."""
    path.unlink()


def swap(path: Path, rng: Random) -> None:
    """Another file of the same folder, which is whole."""
    others = sorted(file for file in path.parent.iterdir() if file.is_file() and file != path)
    if others:
        path.write_bytes(rng.choice(others).read_bytes())


ANY: tuple[Damage, ...] = (
    *(flip, flip, flip_early, flip_early, cut, cut_end, zero, repeat, insert, empty, noise, page),
    *(pointer, dangling, circle, folder, missing, swap),
)

_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**400, 10**30, -(10**18), 1e308, -1e-300, float("nan"), float("inf")),
    *("", "x", "\ud800", "a\0b", "../../thesis", "9" * 400, [], {}, [[]], {"a": {"a": {}}}),
)


def edit_json(path: Path, rng: Random) -> None:
    """One value changed by somebody who knows JSON."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return
    places = list(places_of(content))
    if not places:
        return
    holder, key = rng.choice(places)
    found = holder[key]
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == 2 and isinstance(found, int | float) and not isinstance(found, bool):
        holder[key] = rng.choice((-found, found + 1, found * 2, found / 3, found * 10**6))
    elif kind == 3 and isinstance(found, list) and found:
        rng.shuffle(found)
    else:
        holder[key] = rng.choice(_ODD)
    path.write_text(json.dumps(content, ensure_ascii=True))


def odd_json(path: Path, rng: Random) -> None:
    """JSON that no program writes: deep, doubled, endless, or of another type."""
    text = path.read_text()
    path.write_text(
        rng.choice(
            (
                "[" * 100_000,
                '{"a":' * 100_000,
                "[" * 900 + "]" * 900,
                '{"a": ' + "1" * 5000 + "}",
                "[]",
                '"text"',
                "null",
                "NaN",
                "﻿" + text,
                text + text,
                text.replace("{", '{"version": 1, "version": 2, ', 1),
                text.replace(":", ': -Infinity, "x":', 1),
            )
        )
    )


def edit_safetensors(path: Path, rng: Random) -> None:
    """A header that is well formed and says something else; or weights that are no weights."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    begin = header[name]["data_offsets"][0]
    match rng.randrange(9):
        case 0:
            header[name]["shape"] = header[name]["shape"][::-1]
        case 1:
            header[name], header[other] = header[other], header[name]
        case 2:
            header[f"{name}.surplus"] = header.pop(name)
        case 3:
            header["surplus"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2}
        case 4:
            header[name]["shape"] = [10**12, *header[name]["shape"]]
        case 5:
            header[name]["dtype"] = rng.choice(("F64", "I32", "BF16", "F8_E4M3", "X"))
        case 6:
            data[begin : begin + 4] = struct.pack("<f", rng.choice((1e30, float("nan"), 3e38)))
        case 7:
            size = min(64, len(data) - begin) // 4 * 4
            data[begin : begin + size] = struct.pack("<f", 1e30) * (size // 4)
        case _:
            header["__metadata__"] = {"format": rng.choice(("tf", "np", "x"))}
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    path.write_bytes(struct.pack("<Q", len(packed)) + packed + data)


def edit_zip(path: Path, rng: Random) -> None:
    """A flag of a member: encrypted, packed by an unknown method, another size or name."""
    content = bytearray(path.read_bytes())
    central = list(_every(content, b"PK\x01\x02"))
    local = list(_every(content, b"PK\x03\x04"))
    if not central or not local:
        return
    kind = rng.randrange(4)
    for at, shift in ((rng.choice(central), 2), (rng.choice(local), 0)):
        if kind == 0:
            content[at + 6 + shift] |= 1  # encrypted
        elif kind == 1:
            content[at + 8 + shift] = rng.choice((1, 9, 12, 14, 93, 99))
        elif kind == 2:
            content[at + 18 + shift : at + 22 + shift] = rng.randbytes(4)
        else:
            content[at + 30 + 8 * shift] ^= 1
    path.write_bytes(content)


def repack(path: Path, rng: Random) -> None:
    """A few bytes of a member changed, and its checksum with them."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    except zipfile.BadZipFile:
        return
    # The small ones say what the large ones are.
    names = sorted((name for name in members if members[name]), key=lambda name: len(members[name]))
    content = members[rng.choice((names[0], rng.choice(names)))]
    for _ in range(rng.choice((1, 1, 2, 8))):
        content[rng.randrange(min(3000, len(content)))] = rng.randrange(256)
    with zipfile.ZipFile(path, "w") as archive:
        for name, held in members.items():
            archive.writestr(name, bytes(held))


def damages_of(path: Path) -> tuple[Damage, ...]:
    """What can happen to a file of this kind."""
    special: dict[str, tuple[Damage, ...]] = {
        ".json": (edit_json,) * 8 + (odd_json,) * 3,
        ".safetensors": (edit_safetensors,) * 8,
        ".zip": (*(edit_zip,) * 5, repack, repack),
        ".npz": (*(edit_zip,) * 5, repack, repack),
        ".pt": (*(edit_zip,) * 5, *(repack,) * 5),
    }
    return (*ANY, *special.get(path.suffix, ()))


def places_of(content: Any) -> list[tuple[Any, Any]]:
    """Every holder and key inside it, at most the first 3,000."""
    found: list[tuple[Any, Any]] = []
    todo = [content] if isinstance(content, dict | list) else []
    while todo and len(found) < 3000:
        holder = todo.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        found += [(holder, key) for key in keys]
        todo += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    return found


def _every(content: bytearray, wanted: bytes) -> list[int]:
    found, at = [], content.find(wanted)
    while at >= 0:
        found.append(at)
        at = content.find(wanted, at + 1)
    return found


def is_same(one: Path, other: Path) -> bool:
    """Whether the damage left the file as it was."""
    if not other.is_file() or os.path.islink(other):
        return False
    return one.read_bytes() == other.read_bytes()
