"""Every file a stage writes or reads: arrays, metrics, weights.

Same numbers, same bytes; whole or not at all.
"""

import hashlib
import json
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_core.errors import InputError, first_line
from interp_core.files.sums import check_sum
from interp_core.files.sums import file_sha256 as file_sha256
from interp_core.files.way_out import missing, way_out

if TYPE_CHECKING:
    import torch


# What zipfile and NumPy say of an archive that is cut, changed, packed oddly or encrypted.
BROKEN_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError, SyntaxError),
    *(NotImplementedError, RuntimeError, MemoryError, struct.error, tokenize.TokenError),
    OverflowError,
)

LARGEST_HEADER = 10_000  # bytes before an array in its .npy: NumPy refuses more when it reads


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, synced to disk, when the block ends
    without an error.

    An OSError of the block names `path`, not the temporary one. In a folder that is guarded,
    InputError for a file of somebody else's.
    """
    from interp_core.files.vouching import before_replacing  # it writes its records by this

    before_replacing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path, os.getpid())
    with suppress(OSError):
        _remove_parts_of_the_dead(path)
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())

        before_replacing(path, by=part)
        part.replace(path)
    except OSError as problem:
        if problem.errno is None:
            raise
        raise OSError(problem.errno, problem.strerror, str(path)) from problem
    finally:
        # Where nothing can be written, nothing can be removed: the block's error is the one to see.
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _part_of(path: Path, process: int) -> Path:
    """Where a process writes what will take the path's place."""
    return path.with_name(f".{path.stem}.{process}.part{path.suffix}")


def _remove_parts_of_the_dead(path: Path) -> None:
    """Delete what writers of this file that were killed left beside it; a living one goes on."""
    for name in os.listdir(path.parent):
        owner = name.removeprefix(f".{path.stem}.").removesuffix(f".part{path.suffix}")
        if not owner.isdecimal() or name != _part_of(path, int(owner)).name:
            continue

        if not _lives(int(owner)):
            path.with_name(name).unlink()


def _lives(process: int) -> bool:
    """Whether a process of this number runs here."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def check_writable(folder: Path) -> None:
    """Make the folder, and find out that it cannot be written before anything is computed:
    InputError.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another command's probe is of the same name
    except OSError as problem:
        raise InputError(f"cannot write into {folder}: {problem.strerror}") from None


def remove_unfinished(folder: Path) -> None:
    """Delete what writers killed inside `replacing` left in the folder: only where nobody writes
    now.
    """
    for part in folder.rglob(".*.part*"):
        part.unlink()


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Named arrays as an uncompressed .npz; equal arrays give equal bytes.

    Member times are fixed. `np.savez` forces 64-bit headers, which Python's zipfile writes in
    another way since 3.11.4; without force its bytes are those of every version.
    """
    with replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in arrays.items():
            array = np.asarray(array)
            member = zipfile.ZipInfo(f"{name}.npy")
            # Whether the header must be of 64 bits is decided before anything is written.
            member.file_size = array.nbytes + LARGEST_HEADER
            with archive.open(member, "w") as written:
                np.lib.format.write_array(written, array, allow_pickle=False)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz. InputError when the file is missing or damaged."""
    check_sum(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise missing(path) from None
    except BROKEN_ARCHIVE as problem:
        raise InputError(
            f"{path} is damaged ({first_line(problem)}): delete it and run the command that writes "
            "it"
        ) from None

    # What is in an archive and no array comes as bytes: a PyTorch file's pickle stays closed.
    if other := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
        raise InputError(f"{path} is no file of arrays: it holds {other[0]}")
    return found


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readable JSON; numpy scalars and arrays become numbers and lists.

    Not-a-number is an error, never written.

    Ten significant digits: the last bits of a sum depend on where its terms lie in memory, and so
    on the run.
    """
    text = json.dumps(_plain(content), indent=2, allow_nan=False)
    with replacing(path) as part:
        part.write_text(text + "\n")


def as_saved(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as `load_json` gives it back after `save_json`: lists, and ten digits."""
    return _plain(content)


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. InputError when the file is missing or damaged."""
    check_sum(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path) from None
    except (ValueError, RecursionError) as problem:
        raise InputError(
            f"{path} is damaged ({first_line(problem)}): delete it and run the command that writes "
            "it"
        ) from None

    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object; write it again")
    return found


def save_weights(
    path: Path, tensors: "Mapping[str, torch.Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Tensors as .safetensors, contiguous and on the CPU.

    OSError when the disk is full, as for every other file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as part:
        try:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                part,
                metadata,
            )
        except SafetensorError as problem:
            if (told := re.search(r"\(os error (\d+)\)", str(problem))) is None:
                raise
            raise OSError(int(told[1]), os.strerror(int(told[1]))) from problem


def load_weights(path: Path) -> "dict[str, torch.Tensor]":
    """Tensors of a .safetensors file. InputError when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_sum(path)
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing{way_out(path, 'writes')}") from None
    except (SafetensorError, OSError) as problem:
        raise InputError(
            f"{path} is damaged ({first_line(problem)}): fetch or train it again"
        ) from None


def array_sha256(*arrays: np.ndarray) -> str:
    """Hex SHA-256 of arrays: their types, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """The value in JSON's own types, floats with ten significant digits."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.10g}")
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"not JSON: {type(value).__name__}")
