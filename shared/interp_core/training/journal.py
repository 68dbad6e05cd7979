"""The points of a training's live curves, kept beside its state until it has ended.

A killed process takes with it what it had not sent, and an offline run keeps nothing before its
end. From here all points are sent again when the training goes on, as the same run.
"""

import json
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
_FILE = "curves.jsonl"


@dataclass(frozen=True)
class Journal:
    """A run's id, and what was logged to it; a line each."""

    folder: Path
    run: str  # id
    earlier: tuple[Entry, ...]  # of the parts before this one, in order
    seen: dict[int, set[str]] = field(default_factory=dict, repr=False)  # their names, by step

    @classmethod
    def open(cls, folder: Path) -> "Journal":
        """The journal of a training's folder, begun where there is none."""
        file = folder / _FILE
        text = file.read_text() if file.exists() else ""

        # A machine that stops may cut the last line.
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            file.write_text(whole)

        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            # Not from the fingerprint: who trains the same again, here or elsewhere, gets another
            # run.
            lines = [{"run": secrets.token_hex(4)}]
            file.write_text(json.dumps(lines[0]) + "\n")

        opened = cls(folder, lines[0]["run"], tuple(lines[1:]))
        for entry in opened.earlier:
            opened.seen.setdefault(entry["step"], set()).update(names_of(entry))
        return opened

    def note(self, entry: Entry) -> None:
        """Keep one more entry; what the process wrote outlives the process."""
        with (self.folder / _FILE).open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def keep_picture(self, name: str, picture: Path, step: int) -> Entry:
        """Copy a picture, which its owner will draw over, and note it."""
        kept = f"picture-{name.replace('/', '-')}-{step}{picture.suffix}"
        shutil.copyfile(picture, self.folder / kept)
        entry = {"step": step, "picture": name, "file": kept}
        self.note(entry)
        return entry


def names_of(entry: Entry) -> set[str]:
    """What an entry has a point of."""
    return {entry["picture"]} if "picture" in entry else set(entry["values"])
