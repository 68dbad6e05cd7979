"""Which stages ran with a processor's own instructions (INDUCTION_LAB_CPU=native, processor.py).

Their files have no mark: what is committed would have other bytes by it. So a stage that runs
natively leaves a note in the project's .scratch: the hashes that DVC gives to what it wrote. It
counts while dvc.lock has one of them. Notes stay on the machine, and where DVC copies the project
for an experiment (`--temp`), in that copy.
"""

from pathlib import Path

from interp_core import processor
from interp_core.console.dvc_files import Sums, md5_of, outs_in, outs_of
from interp_core.console.last_commit import at_head
from interp_core.files.artifacts import load_json, save_json
from interp_core.files.params import project_root, read_yaml
from interp_core.files.unfinished import SCRATCH
from interp_core.files.way_out import written_by

MEND = f"unset {processor.SWITCH}, and `dvc repro --force` makes them again"
_SHOWN = 3  # stages in the line
_SUFFIX = ".json"


def note_stage(stage: str) -> None:
    """Note the hashes of what a stage has just written natively; else strike them off.

    What the last commit has is not noted: there the instructions have made no difference. Nothing
    for a stage of somebody's own.
    """
    root = project_root()
    note = _notes(root) / f"{stage}{_SUFFIX}"
    natively = processor.instructions() == "native"
    if not natively and not note.is_file():
        return

    declared = root / "dvc.yaml"
    stages = (read_yaml(declared).get("stages") if declared.is_file() else None) or {}
    if stage not in stages:
        return

    sums = Sums()
    there = [path for path in written_by(stages[stage]) if (root / path).exists()]
    written = {md5_of(root / path, sums): path for path in there}
    noted = load_json(note) if note.is_file() else {}

    # By content, not by stage: DVC's run-cache may bring back what was written natively before.
    if natively:
        committed = {out.md5 for out in outs_in(at_head(root, "dvc.lock") or "stages: {}")}
        noted |= {md5: path for md5, path in written.items() if md5 not in committed}
    else:
        noted = {md5: path for md5, path in noted.items() if md5 not in written}

    save_json(note, noted)


def made_natively(root: Path) -> list[str]:
    """Stages of which something lies in data/ that they wrote natively, here."""
    notes = {file.name.removesuffix(_SUFFIX): file for file in sorted(_notes(root).glob("*.json"))}
    if not notes or not (root / "dvc.lock").is_file():
        return []

    locked = {out.md5 for out in outs_of(root)}
    return [stage for stage, file in notes.items() if locked & load_json(file).keys()]


def said(stages: list[str]) -> str:
    """The stages in one phrase, and what that means for their numbers."""
    more = f" and {len(stages) - _SHOWN} more" if len(stages) > _SHOWN else ""
    named = f"{', '.join(stages[:_SHOWN])}{more}"
    return (
        f"made with this processor's own instructions: {named}; numbers differ from those of "
        "other machines in the last digits"
    )


def _notes(root: Path) -> Path:
    return root / SCRATCH / "natively"
