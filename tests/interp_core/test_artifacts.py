"""Files: equal content gives equal bytes, and what cannot be written whole is not there."""

import errno
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, floating_dtypes, integer_dtypes

from interp_core.errors import InputError
from interp_core.files.artifacts import (
    array_sha256,
    file_sha256,
    load_arrays,
    load_json,
    load_weights,
    replacing,
    save_arrays,
    save_json,
    save_weights,
)

Writer = Callable[[Path], None]


def write_arrays(path: Path) -> None:
    save_arrays(path, {"a": np.arange(50000.0), "deep/name": np.ones((2, 3), dtype=np.float32)})


def write_json(path: Path) -> None:
    save_json(path, {"numbers": list(range(5000)), "name": "é"})


def write_weights(path: Path) -> None:
    save_weights(
        path,
        {"w": torch.arange(50000.0).reshape(100, 500).T, "b": torch.zeros(3)},
        {"format": "pt"},
    )


WRITERS: list[tuple[str, Writer]] = [
    ("file.npz", write_arrays),
    ("file.json", write_json),
    ("file.safetensors", write_weights),
]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail, as beyond a quota."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# Written by Python 3.11.2, 3.11.7 and 3.13.0, which differ in how zipfile writes 64-bit headers.
ON_EVERY_PYTHON = {
    "file.json": "ad3f293d3faf3a4794bbe3a2c00242bfd684632631d6df47213095b0d7c1815c",
    "file.npz": "7ff77c3c30b63976c31046ab6c65db673fe23bc27bbec3d8011e30dd8a28f61f",
    "file.safetensors": "99e80d2ca23c5eff60186e74071717b12621f8d6e48f05d6a77dbbd4a54093f6",
}


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_bytes_are_those_of_every_python(name: str, write: Writer, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert file_sha256(tmp_path / name) == ON_EVERY_PYTHON[name]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_equal_content_is_equal_bytes_at_any_time(name: str, write: Writer, tmp_path: Path) -> None:
    write(tmp_path / "first" / name)
    with pytest.MonkeyPatch.context() as later:
        later.setattr(time, "time", lambda: 2_000_000_000.0)
        write(tmp_path / "second" / name)
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert [file.name for file in (tmp_path / "first").iterdir()] == [name]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_a_file_that_does_not_fit_is_named_the_old_one_stays_and_no_part_does(
    name: str, write: Writer, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text("old")
    with largest_file(3000), pytest.raises(OSError, match="File too large") as problem:
        write(file)
    assert problem.value.errno == errno.EFBIG
    assert problem.value.filename == str(file)
    assert [found.name for found in tmp_path.iterdir()] == [name]
    assert file.read_text() == "old"


@pytest.mark.parametrize(("name", "write"), WRITERS[:2])
def test_a_full_disk_is_the_same(name: str, write: Writer, tmp_path: Path) -> None:
    file = tmp_path / name
    file.with_name(f".{file.stem}.{os.getpid()}.part{file.suffix}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as problem:
        write(file)
    assert problem.value.filename == str(file)
    assert list(tmp_path.iterdir()) == []


def test_an_error_or_an_interrupt_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")

    def write(problem: type[BaseException]) -> None:
        with replacing(file) as part:
            part.write_text("new")
            raise problem

    for problem in (ValueError, KeyboardInterrupt, OSError):
        with pytest.raises(problem):
            write(problem)
        assert file.read_text() == "old"
        assert list(tmp_path.iterdir()) == [file]
    with replacing(file) as part:
        part.write_text("new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_removed_does_not_hide_what_went_wrong(tmp_path: Path) -> None:
    path = tmp_path / "out" / "file.png"

    def write() -> None:
        with replacing(path) as part:
            part.parent.rmdir()
            part.parent.write_text("the folder is gone: nothing can be removed from it")
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(part))

    with pytest.raises(OSError, match="Read-only") as problem:
        write()
    assert (problem.value.errno, problem.value.filename) == (errno.EROFS, str(path))


@given(
    st.dictionaries(
        st.text("abcXYZ_/0", min_size=1, max_size=6).filter(lambda name: name not in ("a/", "/")),
        arrays(
            st.one_of(
                floating_dtypes(endianness="<", sizes=(32, 64)), integer_dtypes(endianness="<")
            ),
            array_shapes(min_dims=0, max_dims=3, min_side=0),
        ),
        max_size=3,
    )
)
def test_arrays_come_back_as_they_were(content: dict[str, np.ndarray]) -> None:
    with TemporaryDirectory() as folder:
        save_arrays(Path(folder) / "x.npz", content)
        found = load_arrays(Path(folder) / "x.npz")
    assert found.keys() == content.keys()
    for name, array in content.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_weights_come_back_bitwise(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors")
    found = load_weights(tmp_path / "w.safetensors")
    assert found["w"].equal(torch.arange(50000.0).reshape(100, 500).T)
    assert set(found) == {"w", "b"}


def test_json_takes_numpy_and_paths_but_no_number_that_is_not_one(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    save_json(
        file, {"n": np.int64(3), "x": np.float32(0.5), "list": np.arange(2), "path": Path("a/b")}
    )
    assert load_json(file) == {"n": 3, "x": 0.5, "list": [0, 1], "path": "a/b"}
    for bad in (float("nan"), np.float64("inf"), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            save_json(file, {"bad": bad})
    assert load_json(file)["n"] == 3
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("name", "write"), WRITERS)
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "text"])
def test_what_cannot_be_read_is_named_in_one_line(
    name: str, write: Writer, damage: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    write(file)
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {"cut": content[: len(content) // 2], "empty": b"", "text": b"hello { "}[damage]
        )
    load = {".npz": load_arrays, ".json": load_json, ".safetensors": load_weights}[file.suffix]
    with pytest.raises(InputError) as problem:
        load(file)
    assert str(file) in str(problem.value)
    assert ("is missing" if damage == "missing" else "is damaged") in str(problem.value)
    assert "\n" not in str(problem.value)


def test_hashes_tell_types_shapes_and_order_apart(tmp_path: Path) -> None:
    zeros = np.zeros(4)
    different = [
        [zeros],
        [zeros.astype(np.int64)],
        [zeros.reshape(2, 2)],
        [zeros[:2], zeros[:2]],
        [zeros, zeros],
    ]
    assert len({array_sha256(*several) for several in different}) == len(different)
    assert array_sha256(np.arange(6).reshape(2, 3).T) == array_sha256(
        np.ascontiguousarray(np.arange(6).reshape(2, 3).T)
    )
    (tmp_path / "abc").write_bytes(b"abc")
    assert (
        file_sha256(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_json_does_not_keep_the_bits_that_differ_between_runs(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, value in zip(files, (0.3859672734999868, 0.3859672734999867), strict=True):
        save_json(file, {"nested": [{"value": value}]})
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_a_killed_writer_left_is_gone_with_the_next_one(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left, lives, other = (
        tmp_path / name
        for name in (
            f".a.{gone.pid}.part.json",
            f".a.{os.getppid()}.part.json",
            f".ab.{gone.pid}.part.json",
        )
    )
    for part in (left, lives, other):
        part.write_text("half")

    save_json(tmp_path / "a.json", {"n": 1})
    assert {file.name for file in tmp_path.iterdir()} == {"a.json", lives.name, other.name}
