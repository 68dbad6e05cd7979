"""Every file a stage writes or reads: arrays, metrics, weights.

Same numbers, same bytes; whole or not at all.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_core.errors import InputError

if TYPE_CHECKING:
    import torch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, synced to disk, when the block ends
    without an error.

    An OSError of the block names `path`, not the temporary one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    except OSError as problem:
        if problem.errno is None:
            raise
        raise OSError(problem.errno, problem.strerror, str(path)) from problem
    finally:
        part.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make the folder, and find out that it cannot be written before anything is computed:
    InputError.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as problem:
        raise InputError(f"cannot write into {folder}: {problem.strerror}") from None


def remove_unfinished(folder: Path) -> None:
    """Delete what writers killed inside `replacing` left in the folder: only where nobody writes
    now.
    """
    for part in folder.rglob(".*.part*"):
        part.unlink()


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Named arrays as an uncompressed .npz; member times are fixed, so equal arrays give equal
    bytes.
    """
    with replacing(path) as part:
        np.savez(
            part, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()}
        )  # pyright: ignore[reportArgumentType]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz. InputError when the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: run the command that writes it first (`dvc repro` runs all)"
        ) from None
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as problem:
        raise InputError(
            f"{path} is damaged ({problem}): delete it and run the command that writes it"
        ) from None


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readable JSON; numpy scalars and arrays become numbers and lists.

    Not-a-number is an error, never written.

    Ten significant digits: the last bits of a sum depend on where its terms lie in memory, and so
    on the run.
    """
    text = json.dumps(_plain(content), indent=2, allow_nan=False)
    with replacing(path) as part:
        part.write_text(text + "\n")


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. InputError when the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: run the command that writes it first (`dvc repro` runs all)"
        ) from None
    except json.JSONDecodeError as problem:
        raise InputError(
            f"{path} is damaged ({problem}): delete it and run the command that writes it"
        ) from None


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

    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except SafetensorError as problem:
        raise InputError(f"{path} is damaged ({problem}): fetch or train it again") from None


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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
