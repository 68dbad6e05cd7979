"""`kill -9` at seeded moments of every training, and of what draws: the same command ends with the
same bytes.

A moment is a change of the file system: of a state that is saved, a checkpoint, a record, a figure,
or the final swap of folders. Every command runs in a fork with the libraries loaded.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from warm_commands import warm_commands

ROOT = Path(__file__).parents[2]
MOMENTS = 18  # of each training, half of them among its last changes
FEW = 8  # moments of a command that draws
LAST = 40  # changes: of the final swap, and of what is tidied after it
WAIT = 300.0  # seconds, after which a command hangs

# Python runs this first in every process: it counts changes below the project, a byte each, and
# kills the process before the one of this number.
WATCH = """
import os
import signal
import sys

if "KILL_IN" in os.environ:
    kill_in, kill_at = os.environ["KILL_IN"], int(os.environ["KILL_AT"])
    counted = os.open(os.environ["KILL_COUNT"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    changes = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"}
    seen = 0

    def count(event, arguments):
        global seen
        if event == "open":
            place, mode, flags = arguments
            if isinstance(place, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in changes:
            return
        # A link is told by what it is of, and where: the second one is ours.
        place = arguments[1] if event == "os.link" else arguments[0]
        if not os.path.abspath(os.fsdecode(place)).startswith(kill_in):
            return
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(counted, b".")
        seen += 1

    sys.addaudithook(count)
"""

TRAININGS = {
    "models": ["induction-lab", "models"],
    "mamba-models": ["induction-lab", "mamba-models"],
    "eigen-phase": ["eigen-phase", "train", "--seed", "3", "--out", "mine"],
    "fine-tune": ["mamba-induction", "fine-tune", "--texts", "8", "--out", "mine"],
    "handwriting": ["cursive-circuits", "train", "--only", "handwriting"],
    "control": ["cursive-circuits", "train", "--only", "control"],
}
MODELS = ["induction-lab", "models"]
PROFILE = ["induct", "profile"]
# What draws, behind what it draws from: figures of a study, of a run into its folder, and a page.
DRAWINGS = {
    "figures": [MODELS, PROFILE, ["induct", "figures"]],
    "visualize": [TRAININGS["eigen-phase"], ["eigen-phase", "visualize", "mine"]],
    "page": [MODELS, ["induct", "page", "--model", "neox-2l", "--out", "mine"]],
}
BEFORE = [
    ["induction-lab", "corpus"],
    ["induction-lab", "mamba-models"],
    ["cursive-circuits", "prepare"],
]


def profile() -> dict[str, Any]:
    """Of seconds, in which every training saves after every step."""
    content = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    content["corpus"] |= {"max_characters": 40_000, "validation_every": 4}
    small = {"steps": 6, "warmup": 2, "checkpoint_every": 3, "save_seconds": 0}

    for section in ("reference_models", "mamba_models"):
        content[section]["recipe"] |= small
    content["reference_models"]["models"] = {"neox-2l": {"layers": 2, "heads": 2, "width": 16}}
    content["pythia_topology"]["models"] = ["neox-2l"]

    often = {"num_steps": 6, "eval_interval": 2, "eigen_interval": 3, "checkpoint_interval": 3}
    content["eigen_phase"]["training"] |= often | {"save_seconds": 0}
    content["mamba_induction"] |= {"save_seconds": 0}

    content["cursive_circuits"]["processes"] = 1
    for model in ("handwriting", "control"):
        content["cursive_circuits"][model]["recipe"] |= small
    return content


@dataclass(frozen=True)
class Project:
    """A project that is laid out anew for every moment, at one place: paths are in some files."""

    home: Path
    base: Path
    environment: dict[str, str]

    def lay_out(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.base, self.home)

    def run(self, command: list[str], *, kill_at: int = -1) -> tuple[int, int, str]:
        """Exit code, counted changes, and what it said; killed before a change of this number."""
        count = self.home.parent / "count"
        watch = {"KILL_IN": str(self.home), "KILL_AT": str(kill_at), "KILL_COUNT": str(count)}
        done = subprocess.run(
            command,
            cwd=self.home,
            env=self.environment | watch,
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
        return done.returncode, count.stat().st_size, done.stdout + done.stderr

    def files(self) -> dict[str, bytes]:
        """All that is there in the end, but trainings that are kept to be put back."""
        found = sorted(path for path in self.home.rglob("*") if path.is_file())
        files = {path.relative_to(self.home).as_posix(): path.read_bytes() for path in found}
        return {name: held for name, held in files.items() if ".scratch/finished" not in name}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    place = tmp_path_factory.mktemp("kills")
    home = place / "project"
    (home / "profiles").mkdir(parents=True)
    (home / "profiles" / "small.yaml").write_text(yaml.safe_dump(profile()))
    (home / "params.yaml").write_text("profile: small\n")
    (place / "watch").mkdir()
    (place / "watch" / "sitecustomize.py").write_text(WATCH)

    sources = [str(ROOT / "packages"), str(ROOT / "shared"), str(place / "watch")]
    own = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sources),
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
    }
    with warm_commands(place / "warm", own, place) as environment:
        made = Project(home, place / "base", environment)
        for command in BEFORE:
            code, _, said = made.run(command)
            assert code == 0, said
        shutil.copytree(home, made.base)
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS)
def test_killed_at_any_moment_it_ends_with_the_same_bytes(training: str, project: Project) -> None:
    project.lay_out()
    killed_at_moments(project, TRAININGS[training], name=training, moments=MOMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("drawing", DRAWINGS)
def test_killed_while_it_draws_it_leaves_no_half_of_a_figure(
    drawing: str, project: Project, tmp_path: Path
) -> None:
    *before, command = DRAWINGS[drawing]
    project.lay_out()
    for earlier in before:
        code, _, said = project.run(earlier)
        assert code == 0, said

    shutil.copytree(project.home, tmp_path / "base")
    drawn = replace(project, base=tmp_path / "base")
    figures = killed_at_moments(drawn, command, name=drawing, moments=FEW)
    assert any(name.endswith((".png", ".html")) for name in figures)


def killed_at_moments(
    project: Project, command: list[str], *, name: str, moments: int
) -> dict[str, bytes]:
    """Kill the command once at each moment and run it again; all files that it makes."""
    code, changes, said = project.run(command)
    assert code == 0, said
    whole = project.files()
    assert not [name for name in whole if ".scratch" in name or ".part" in name], "left behind"

    rng = Random(f"kill -9 {name}")
    anywhere = rng.sample(range(changes), min(changes, moments // 2))
    swap = range(max(0, changes - LAST), changes)
    last = rng.sample(swap, min(len(swap), moments - moments // 2))

    for moment in sorted({*anywhere, *last}):
        project.lay_out()
        code, reached, said = project.run(command, kill_at=moment)
        assert (code, reached) == (256 - signal.SIGKILL, moment), said

        code, _, said = project.run(command)
        assert code == 0, f"after a kill at change {moment}: {said}"
        assert project.files() == whole, f"after a kill at change {moment} of {changes}"
    return whole


PIPELINE = {
    "stages": {
        "models": {
            "cmd": "induction-lab models",
            "deps": ["data/corpus"],
            "params": [{"profiles/small.yaml": ["reference_models"]}],
            "outs": ["data/models", {"data/training": {"cache": False}}],
        },
        "profile": {
            "cmd": "induct profile",
            "deps": ["data/models", "data/corpus"],
            "params": [{"profiles/small.yaml": ["pythia_topology"]}],
            "outs": ["data/pythia_topology/scores/profile"],
            "metrics": [{"data/pythia_topology/metrics/profile": {"cache": False}}],
        },
        "figures": {
            "cmd": "induct figures",
            "deps": [
                "data/pythia_topology/scores/profile",
                "data/pythia_topology/metrics/profile",
            ],
            "plots": [{"data/pythia_topology/figures": {"cache": False}}],
        },
    }
}
# What is there for the first time when DVC is killed, and its child goes on.
REACHED = {
    "a training has begun": ".scratch/*/*",
    "a state is saved": ".scratch/**/*.safetensors",
    "the folder of a model is in its place": "data/models/neox-2l/files.json",
    "DVC puts the models into its cache": ".dvc/cache/files/md5/??/*",
    "the next stage has saved scores": "data/pythia_topology/scores/profile/*.npz",
    "a figure is there": "data/pythia_topology/figures/**/*.png",
}


@pytest.fixture(scope="module")
def pipeline(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, dict[str, bytes]]:
    """The same project with three stages, whose commands are DVC's children, and what they make."""
    made = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(project.base, made / "base")
    (made / "base" / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE, sort_keys=False))
    (made / "base" / ".dvcignore").write_text(".scratch/\n")
    (made / "base" / ".dvc").mkdir()
    settings = "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"
    (made / "base" / ".dvc" / "config").write_text(settings)

    _, _, programs = project.environment["PATH"].partition(os.pathsep)  # the first are the server's
    found = Project(made / "project", made / "base", project.environment | {"PATH": programs})
    found.lay_out()
    code, said = repro(found)
    assert code == 0, said
    whole = results(found)
    assert not [name for name in whole if ".scratch" in name or ".part" in name], "left behind"
    return found, whole


def repro(project: Project) -> tuple[int, str]:
    """Exit code of a `dvc repro`, and what it said."""
    done = subprocess.run(
        ["dvc", "repro"],
        cwd=project.home,
        env=project.environment,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def results(project: Project) -> dict[str, bytes]:
    """All that counts of a run: its files, and what DVC wrote of them."""
    return {
        name: held
        for name, held in project.files().items()
        if name.startswith(("data/", ".scratch")) or name == "dvc.lock"
    }


def those_of(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # State, parent, group and session stand behind the name, which may hold anything.
            state, _, _, its_session, *_ = (place / "stat").read_text().rpartition(")")[2].split()
            if int(its_session) == session and state != "Z":
                found.append(int(place.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("moment", REACHED)
def test_dvc_alone_is_killed_and_its_child_is_left(
    moment: str, pipeline: tuple[Project, dict[str, bytes]], tmp_path: Path
) -> None:
    project, whole = pipeline
    project.lay_out()

    with (tmp_path / "said").open("w") as said:
        first = subprocess.Popen(
            ["dvc", "repro"],
            cwd=project.home,
            env=project.environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + WAIT
    while not any(project.home.glob(REACHED[moment])):
        assert first.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.kill()
    first.wait()

    # At once, while the child may still be at work: it ends well, or says who is in the way.
    code, told = repro(project)
    assert "Traceback" not in told
    assert code == 0 or "is writing into" in told, told

    while those_of(first.pid):
        assert time.monotonic() < deadline, "an orphan that does not end"
        time.sleep(0.1)
    code, told = repro(project)
    assert code == 0, told
    assert results(project) == whole
