"""Who may import whom: rooms upwards only, studies never each other, and names of before go on."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import interp_core

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "shared" / "interp_core"
STUDIES = sorted(folder.name for folder in (ROOT / "packages").iterdir() if folder.is_dir())

# From the bottom up: a room imports those before it, at the top of a module or inside a function.
ORDER = (
    "errors",
    "given",
    "processor",
    "progress",
    "settled",
    "streams",
    "files",
    "plotting",
    "plotting_maps",
    "statistics",
    "pipeline",
    "stimuli",
    "models",
    "mamba",
    "measures",
    "loading",
    "training",
    "console",
    "page",
    "cli",
)


def imported(file: Path) -> Iterator[str]:
    """Full names of what a file imports when it runs; what only type checkers read is left out."""
    tree = ast.parse(file.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.body
        for inner in ast.walk(child)
    }

    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(file: Path) -> str:
    return file.relative_to(CORE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "file", sorted(CORE.rglob("*.py")), ids=lambda file: str(file.relative_to(CORE))
)
def test_a_room_imports_only_those_below_it(file: Path) -> None:
    room = room_of(file)
    if room == "__init__":
        return

    ours = [name.split(".")[1] for name in imported(file) if name.startswith("interp_core.")]
    above = {other for other in ours if ORDER.index(other) > ORDER.index(room)}
    assert not above, f"{file.relative_to(CORE)} imports {', '.join(sorted(above))} from above"


def test_every_room_has_its_place() -> None:
    assert {room_of(file) for file in CORE.rglob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("study", STUDIES)
def test_studies_import_the_core_and_never_each_other(study: str) -> None:
    others = {*STUDIES} - {study}
    files = (ROOT / "packages" / study).rglob("*.py")
    met = {name.split(".")[0] for file in files for name in imported(file)}
    assert not met & others


def test_the_core_imports_no_study() -> None:
    met = {name.split(".")[0] for file in CORE.rglob("*.py") for name in imported(file)}
    assert not met & {*STUDIES}


def test_what_a_user_imports_from_the_front_is_there() -> None:
    for name in interp_core.__all__:
        assert callable(getattr(interp_core, name)), name


def test_a_module_answers_to_the_name_it_had() -> None:
    for before, now in interp_core._BEFORE.items():
        old = importlib.import_module(f"interp_core.{before}")
        assert old is importlib.import_module(f"interp_core.{now}")
        assert old.__spec__ is not None
        assert old.__spec__.name == f"interp_core.{now}"


def test_a_room_answers_for_the_module_of_its_name() -> None:
    before = {"mamba": "MambaSubject", "models": "Subject", "stimuli": "Prompts"}
    modules = {"mamba": "subject", "models": "subject", "stimuli": "prompts"}

    for room, name in before.items():
        found = getattr(importlib.import_module(f"interp_core.{room}"), name)
        assert found.__module__ == f"interp_core.{room}.{modules[room]}"


@pytest.mark.parametrize(
    "first",
    [
        "from interp_core.models import anatomy, lens",
        "from interp_core.models import Subject",
        "from interp_core.mamba import selective_scan",
        "from interp_core.mamba import MambaSubject",
        "from interp_core.stimuli import corpus",
        "from interp_core.stimuli import Prompts",
    ],
)
def test_a_room_answers_when_it_is_the_first_that_is_imported(first: str) -> None:
    subprocess.run([sys.executable, "-c", first], check=True)


def test_a_room_says_what_it_does_not_have() -> None:
    program = "from interp_core.models import load_model"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.stderr.splitlines()[-1].startswith("ImportError: cannot import name 'load_model'")
