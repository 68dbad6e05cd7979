"""`kill -9` at seeded moments of every training: the same command ends with the same bytes.

A moment is a change of the file system: of a state that is saved, a checkpoint, a record, or the
final swap of folders. Every command runs in a fork with the libraries loaded.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from warm_commands import warm_commands

ROOT = Path(__file__).parents[2]
MOMENTS = 18  # of each training, half of them among its last changes
LAST = 40  # changes: of the final swap, and of what is tidied after it
WAIT = 120.0  # seconds, after which a command hangs

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
BEFORE = [
    ["induction-lab", "corpus"],
    ["induction-lab", "mamba-models", "--models", "mamba-2l"],
    ["cursive-circuits", "prepare"],
]


def profile() -> dict[str, Any]:
    """Of seconds, in which every training saves after every step."""
    content = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    content["corpus"] |= {"max_characters": 40_000, "validation_every": 4}
    small = {"steps": 6, "warmup": 2, "checkpoint_every": 3, "save_seconds": 0}

    for section in ("reference_models", "mamba_models"):
        content[section]["recipe"] |= small
    content["reference_models"]["models"] = {"one": {"layers": 1, "heads": 2, "width": 16}}

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
    command = TRAININGS[training]
    project.lay_out()
    code, changes, said = project.run(command)
    assert code == 0, said
    whole = project.files()
    assert not [name for name in whole if ".scratch" in name or ".part" in name], "left behind"

    rng = Random(f"kill -9 {training}")
    anywhere = rng.sample(range(changes), MOMENTS // 2)
    swap = rng.sample(range(max(0, changes - LAST), changes), MOMENTS - MOMENTS // 2)

    for moment in sorted({*anywhere, *swap}):
        project.lay_out()
        code, reached, said = project.run(command, kill_at=moment)
        assert (code, reached) == (256 - signal.SIGKILL, moment), said

        code, _, said = project.run(command)
        assert code == 0, f"after a kill at change {moment}: {said}"
        assert project.files() == whole, f"after a kill at change {moment} of {changes}"
