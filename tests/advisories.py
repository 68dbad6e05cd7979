"""Known holes in the pinned versions: pip-audit over constraints.txt, a part of `make check`.

It needs an index that knows advisories. Where none answers, or not in time, a line says so: nothing
was checked then, and nothing fails. A hole that has a mended version is an error, unless the
package is pinned for the bytes of results (`[tool.uv]` in pyproject.toml): then it is a note.

`make check` tells errors and passes: what became known today would fail yesterday's commit. With
`--strict`, for whoever changes the pins, an error ends in exit code 1.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 10.0  # more would be left out of `make check`
TOGETHER = 6  # pip-audit asks about one package after the other

Found = list[Mapping[str, Any]]  # pip-audit's "dependencies"


class NotAnsweredError(Exception):
    """Nobody says what is known of a package."""


def main(root: Path, *, strict: bool) -> int:
    """Print what was found in the pins of a project; if `strict`, 1 where one must change."""
    pins = [line for line in (root / "constraints.txt").read_text().splitlines() if "==" in line]
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    held = {_name(pin) for pin in settings["tool"]["uv"]["constraint-dependencies"]}

    try:
        found = _ask(pins)
    except NotAnsweredError as reason:
        print(f"advisories: skipped, {reason}")
        return 0

    lines, fails = told(found, held)
    print("\n".join(lines))
    return int(fails and strict)


def told(found: Found, held: set[str]) -> tuple[list[str], bool]:
    """A line for each hole and one for all, and whether a pin must change."""
    lines, fails = [], False
    unknown = [one["name"] for one in found if "skip_reason" in one]

    for one in found:
        for hole in one.get("vulns", ()):
            mended = ", ".join(hole["fix_versions"]) or "no version yet"
            must = bool(hole["fix_versions"]) and one["name"] not in held
            why = "pinned for the bytes of results" if one["name"] in held else "not mended yet"
            told_as = "error" if must else f"note ({why})"
            mend = f"mended in {mended}"
            lines.append(f"{told_as}: {one['name']} {one['version']}: {hole['id']}, {mend}")
            fails |= must

    holes = len(lines)
    asked = f"advisories: {len(found) - len(unknown)} pins asked about, {holes} holes"
    lines.append(asked + (f", {len(unknown)} unknown to the index" if unknown else ""))
    return lines, fails


def _ask(pins: Sequence[str]) -> Found:
    """What pip-audit says of all pins, asked about in several processes at once."""
    program = shutil.which("pip-audit")
    if program is None:
        raise NotAnsweredError("pip-audit is not installed: `make setup`")

    deadline = time.monotonic() + SECONDS
    with tempfile.TemporaryDirectory() as folder:
        # One alone first: where nobody answers it is known in a second.
        first = _answers(program, [pins[:1]], Path(folder), deadline)
        if all("skip_reason" in one for one in first):
            raise NotAnsweredError(f"the index has no advisories: it does not know {pins[0]}")
        shares = [share for at in range(TOGETHER) if (share := pins[1 + at :: TOGETHER])]
        return first + _answers(program, shares, Path(folder), deadline)


def _answers(program: str, shares: Sequence[Sequence[str]], folder: Path, deadline: float) -> Found:
    running = []
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]

    for at, share in enumerate(shares):
        file = folder / f"{at}.txt"
        file.write_text("\n".join(share) + "\n")
        asked = [program, "--requirement", str(file), *options]
        process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(process)

    try:
        return [one for process in running for one in _answer(process, deadline)]
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _answer(process: "subprocess.Popen[str]", deadline: float) -> Found:
    try:
        out, problem = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise NotAnsweredError(f"no answer in {SECONDS:.0f} s") from None
    try:
        return json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (problem.strip().splitlines() or ["no answer"])[-1]
        raise NotAnsweredError(f"pip-audit failed: {last[:200]}") from None


def _name(pin: str) -> str:
    return re.split(r"[=<>!~;\[ ]", pin)[0]


if __name__ == "__main__":
    sys.exit(main(ROOT, strict="--strict" in sys.argv[1:]))
