"""A stage measures a model once: what this checkout has measured of the same is put back.

So a model that is added to a profile is measured alone. The mark holds all that a number comes
from: the models, what else is read, settings, the code of the study's commands, and versions of the
libraries that compute.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from interp_core import processor
from interp_core.console.call import Call
from interp_core.console.made_from import code_sha256, sha256_of
from interp_core.files.artifacts import file_sha256
from interp_core.files.finished import keep, put_back
from interp_core.files.params import Params, project_root
from interp_core.files.sums import RECORD
from interp_core.files.vouching import vouching
from interp_core.models.spec import spec_of

_LIBRARIES = ("numpy", "scipy", "numba", "torch", "safetensors", "tokenizers", "transformers")


def once(
    run: Call[Any],
    stage: str,
    name: str,
    files: Sequence[Path],
    measure: Callable[[], object],
    *,
    of: Iterable[Path | str],
    settings: Params,
    unread: Collection[str],
    asked: Any = None,
) -> None:
    """Have `files`: put back where a stage's checkout has measured the same, or by `measure()`.

    `of` are files that are read, or hashes; `unread` are settings that change nothing of these
    files, and `asked` is what the settings do not say. An experiment always measures: its folder
    knows what it has.
    """
    if not run.is_stage:
        measure()
        return

    told = [one if isinstance(one, str) else file_sha256(one) for one in of]
    said = settings.model_dump(mode="json", exclude=set(unread))
    ground = [_code(run.study), *map(version, _LIBRARIES), processor.instructions()]
    mark = sha256_of([told, said, asked, ground])[:16]

    with vouching(*files):
        is_back = put_back(files, stage=stage, name=name, mark=mark)

    if is_back:
        click.echo(f"{name}: measured before with these settings and this code, put back")
        return

    measure()
    keep(files, stage=stage, name=name, mark=mark)


def contents(run: Call[Any], model: str) -> list[str]:
    """Hashes of what a model's name means, of its files, and of the checkpoints beside them."""
    spec = spec_of(model, run.known)
    named = sha256_of(spec.model_dump(mode="json", exclude={"path"}))
    folder = None if spec.path is None else project_root() / spec.path
    return [named, run.source(model).sha256, "" if folder is None else _beside(folder)]


def _beside(folder: Path) -> str:
    """The record of a folder that was trained here; of another, what its checkpoints look like."""
    if (folder / RECORD).is_file():
        return file_sha256(folder / RECORD)

    found = [(file, file.stat()) for file in sorted(folder.glob("checkpoints/*"))]
    return sha256_of([[file.name, about.st_size, about.st_mtime_ns] for file, about in found])


def _code(study: str) -> list[str]:
    """Hashes of the code that the study's commands run, and of the bridge.

    No stage depends on the bridge: whoever has it measure anew by force must not get the old.
    """
    bridge = Path(str(resources.files("interp_core.models") / "lens.py"))
    return [code_sha256(study), file_sha256(bridge)]
