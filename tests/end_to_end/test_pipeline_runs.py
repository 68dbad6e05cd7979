"""The whole pipeline of the smoke profile in a clone of this tree, and what `dvc push` and `dvc
pull` carry.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from interp_core.pipeline.commands import Project
from interp_core.pipeline.import_closure import WITHOUT_EFFECT
from warm_commands import warm_commands

ROOT = Path(__file__).parents[2]
OUTS = ("outs", "metrics", "plots")
PART = re.compile(r"\.(.+)\.\d+\.part(\..+)")  # a file while it is written

# Python runs this first in every process: in those of a stage it notes at the end what was
# imported, and at once which data was opened.
WATCH = """
import os
import sys

if "DVC_STAGE" in os.environ:
    import atexit

    def tell():
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        place = os.path.join(os.environ["DVC_ROOT"], "imported", os.environ["DVC_STAGE"])
        with open(place, "a") as out:
            out.writelines(file + chr(10) for file in files if file)

    atexit.register(tell)

    data = os.path.join(os.path.realpath(os.environ["DVC_ROOT"]), "data") + os.sep
    note = os.path.join(os.environ["DVC_ROOT"], "opened", os.environ["DVC_STAGE"])
    opened = set()

    def watch(event, arguments):
        if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            path = os.path.realpath(os.fspath(arguments[0]))
            if path.startswith(data) and path not in opened:
                opened.add(path)
                file = os.open(note, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(file, (path + chr(10)).encode())
                os.close(file)

    sys.addaudithook(watch)
"""


def environment() -> dict[str, str]:
    """Of a clone's commands: its own sources, not the installed ones, are imported."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(["packages", "shared", "watch"]),
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "user.name",
        "GIT_CONFIG_VALUE_0": "tester",
        "GIT_CONFIG_KEY_1": "user.email",
        "GIT_CONFIG_VALUE_1": "tester@example.org",
    }


def run(folder: Path, *command: str, env: dict[str, str] | None = None) -> str:
    """What a command of this environment prints in a clone."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, (
        f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout + done.stderr


def files_of(folder: Path) -> dict[str, bytes]:
    """All files under data, by relative path."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted((folder / "data").rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the tracked and the new files of this tree, the smoke profile chosen, the
    pipeline run once.
    """
    folder = tmp_path_factory.mktemp("lab") / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)  # its time too: Numba's cache goes by it

    # What Numba has compiled here already, a quarter of a minute: it is kept beside the sources,
    # which are the same.
    for compiled in (ROOT / "shared").rglob("__pycache__/*.nb[ci]"):
        place = folder / compiled.relative_to(ROOT)
        place.parent.mkdir(exist_ok=True)
        shutil.copy2(compiled, place)

    (folder / "params.yaml").write_text("profile: smoke\n")
    (folder / "dvc.lock").unlink(missing_ok=True)
    for name in ("imported", "opened", "watch"):
        (folder / name).mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    run(folder, "git", "init", "--quiet")
    with warm_commands(folder.parent / "warm", environment(), folder) as warm:
        run(folder, "dvc", "repro", env=warm)
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "Run the smoke profile")
    return folder


def test_every_stage_writes_what_it_owes_and_nothing_is_left_to_do(clone: Path) -> None:
    assert "up to date" in run(clone, "dvc", "repro")
    study = clone / "data" / "pythia_topology"
    for name in ("neox-2l", "neox-3l", "neox-4l"):
        profile = json.loads((study / "metrics" / "profile" / f"profile_{name}.json").read_text())
        assert {
            "mode",
            "q",
            "per_layer",
            "peak_layer",
            "peak_rel",
            "bandwidth",
            "n_induction_heads",
        } <= profile.keys()
    assert (study / "figures" / "heatmap_neox-4l.png").stat().st_size > 1000
    phase = clone / "data" / "eigen_phase"
    report = json.loads((phase / "metrics" / "transition" / "transition.json").read_text())
    assert set(report["runs"]) == {"tiled-s0", "tiled-s1", "placed-s0"}
    assert (phase / "runs" / "tiled-s0" / "model_final.safetensors").exists()
    assert (phase / "figures" / "controls.png").stat().st_size > 1000
    shown = run(clone, "dvc", "metrics", "show", "--json")
    answers = json.loads((clone / "data" / "answers.json").read_text())
    said = json.loads(shown)[""]["data"]["data/answers.json"]["data"]

    # DVC leaves out what is null: an answer that this small run does not have
    for owner, values in answers.items():
        there = {name: value for name, value in values.items() if value is not None}
        assert said.get(owner, {}) == there

    table = run(clone, "induction-lab", "answers", "--compare").splitlines()
    studies = [clone / "data" / study / "answers.json" for study in answers]
    n = sum(len(json.loads(file.read_text())) for file in studies)
    assert table[-1] == f"{n} answers: {n} the same"
    assert max(map(len, table)) <= 100


def only_a_docstring(file: Path) -> bool:
    """Whether nothing that a module could give to a stage is in it."""
    return all(isinstance(node, ast.Expr) for node in ast.parse(file.read_text()).body)


def test_no_stage_imports_a_file_of_ours_that_it_does_not_depend_on(clone: Path) -> None:
    project = Project.of(clone)
    outside = {*WITHOUT_EFFECT, *project.scripts.values()}
    silent = {project.sources.file_of(module) for module in outside}
    # A package is run first, for a module without effect too: one that only describes itself.
    packages = {project.sources.file_of(module.rpartition(".")[0]) for module in WITHOUT_EFFECT}
    silent |= {file for file in packages if file is not None and only_a_docstring(file)}
    stages = yaml.safe_load((clone / "dvc.yaml").read_text())["stages"]

    for name, stage in stages.items():
        listed = {clone / dep for dep in stage["deps"]}
        noted = (clone / "imported" / name).read_text().splitlines()
        homes = [clone / "packages", clone / "shared"]
        ours = {
            clone / file
            for file in noted
            if any((clone / file).is_relative_to(home) for home in homes)
        }

        assert ours & listed, name
        assert not ours - listed - silent, name


def test_no_stage_opens_data_that_it_does_not_depend_on(clone: Path) -> None:
    stages = yaml.safe_load((clone / "dvc.yaml").read_text())["stages"]

    for name, stage in stages.items():
        places = [*stage["deps"], *(one for kind in OUTS for one in stage.get(kind, []))]
        named = [next(iter(place)) if isinstance(place, dict) else place for place in places]
        known = [(clone / place).resolve() for place in named]

        # What is written under another name first has its own name here; folders are opened to be
        # locked.
        noted = [Path(file) for file in (clone / "opened" / name).read_text().splitlines()]
        files = [
            file.with_name(PART.sub(r"\1\2", file.name)) for file in noted if not file.is_dir()
        ]

        assert files, name
        strange = [one for one in files if not any(one.is_relative_to(place) for place in known)]
        assert strange == [], name


def test_cached_artifacts_travel_to_a_fresh_clone_that_runs_no_stage(
    clone: Path, tmp_path: Path
) -> None:
    run(clone, "dvc", "remote", "modify", "--local", "store", "url", str(tmp_path / "store"))
    run(clone, "dvc", "push")
    other = tmp_path / "other"
    run(tmp_path, "git", "clone", "--quiet", str(clone), str(other))
    run(other, "dvc", "remote", "modify", "--local", "store", "url", str(tmp_path / "store"))
    run(other, "dvc", "pull")
    assert "Running stage" not in run(other, "dvc", "repro")
    assert files_of(other) == files_of(clone)


def test_a_truncated_object_in_the_remote_is_refused(clone: Path, tmp_path: Path) -> None:
    run(clone, "dvc", "remote", "modify", "--local", "store", "url", str(tmp_path / "store"))
    run(clone, "dvc", "push")
    largest = max(
        (p for p in (tmp_path / "store").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    largest.chmod(0o644)
    largest.write_bytes(largest.read_bytes()[:-100])
    other = tmp_path / "other"
    run(tmp_path, "git", "clone", "--quiet", str(clone), str(other))
    run(other, "dvc", "remote", "modify", "--local", "store", "url", str(tmp_path / "store"))
    with pytest.raises(AssertionError, match="dvc pull"):
        run(other, "dvc", "pull")


@pytest.mark.slow
def test_running_twice_gives_the_same_bytes(clone: Path) -> None:
    """The first run's processes are forks of one that has loaded all; these are their own."""
    before, lock = files_of(clone), (clone / "dvc.lock").read_bytes()
    run(clone, "dvc", "repro", "--force")
    assert files_of(clone) == before
    assert (clone / "dvc.lock").read_bytes() == lock
