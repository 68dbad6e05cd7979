"""A model that is added to the profile is measured alone, and whatever a number comes from measures
it anew.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import small_project
from interp_core.console import measured
from interp_core.files import finished
from interp_core.stimuli.corpus import CorpusParams, PackagedText, build
from small_project import induct

COMMANDS = ("profile", "causal", "composition")
PUT_BACK = "{}: measured before with these settings and this code, put back"


@pytest.fixture
def copy(random_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the random project, as the working directory; its profile measures one model."""
    folder = Path(shutil.copytree(random_project, tmp_path / "project"))
    monkeypatch.chdir(folder)
    measure_only(folder, "toy")
    return folder


def measure_only(folder: Path, *models: str, **changes: object) -> None:
    known = {name: {"source": "local", "path": f"models/{name}"} for name in ("toy", "taller")}
    small_project.write_profile(folder, known, **{"models": list(models), **changes})


def run(command: str) -> str:
    """A stage as DVC runs it: what it made before is deleted first."""
    for kind in ("metrics", "scores"):
        shutil.rmtree(Path("data/pythia_topology") / kind / command, ignore_errors=True)

    said = induct(command)
    assert (said.code, said.err) == (0, "")
    return said.out


def written() -> dict[str, bytes]:
    data = Path("data/pythia_topology")
    return {str(file): file.read_bytes() for file in sorted(data.rglob("*")) if file.is_file()}


def test_a_model_that_is_added_is_measured_alone(copy: Path) -> None:
    first = {command: run(command) for command in COMMANDS}
    before = written()

    measure_only(copy, "toy", "taller")
    second = {command: run(command) for command in COMMANDS}

    after = written()
    for command in COMMANDS:
        assert PUT_BACK.format("toy") not in first[command]
        assert PUT_BACK.format("toy") in second[command]
        assert PUT_BACK.format("taller") not in second[command]
        # The last line is the verdict, which does not depend on who measured it.
        assert first[command].splitlines()[-1] in second[command].splitlines()

    # The records of folders list the new model's files too.
    own = {name: content for name, content in before.items() if "toy" in name}
    assert own.items() <= after.items()
    assert "data/pythia_topology/metrics/causal/causal_taller.json" in after


def other_settings(copy: Path, patch: pytest.MonkeyPatch) -> None:
    del patch
    measure_only(copy, "toy", bootstrap_resamples=101)


def other_weights(copy: Path, patch: pytest.MonkeyPatch) -> None:
    del patch
    shutil.rmtree(copy / "models" / "toy")
    shutil.copytree(copy / "models" / "taller", copy / "models" / "toy")


def other_text(copy: Path, patch: pytest.MonkeyPatch) -> None:
    del patch
    text = PackagedText(distributions=("click",), min_characters=80)
    again = CorpusParams(packaged=text, vocabulary=512, validation_every=5)
    build(again, copy / "data" / "corpus")


def other_code(copy: Path, patch: pytest.MonkeyPatch) -> None:
    del copy
    patch.setattr(measured, "_code", lambda study: [f"another {study}"])


def other_library(copy: Path, patch: pytest.MonkeyPatch) -> None:
    del copy
    patch.setattr(measured, "version", lambda name: f"{name} 99")


def other_instructions(copy: Path, patch: pytest.MonkeyPatch) -> None:
    del copy
    patch.setattr(measured, "processor", SimpleNamespace(instructions=lambda: "native"))


def damaged(copy: Path, patch: pytest.MonkeyPatch) -> None:
    del patch
    (kept,) = (copy / ".scratch" / "finished" / "pythia_profile").glob("toy-*/scores_toy.npz")
    kept.write_bytes(kept.read_bytes()[:-1] + b"\x7f")


def half_kept(copy: Path, patch: pytest.MonkeyPatch) -> None:
    del patch
    (kept,) = (copy / ".scratch" / "finished" / "pythia_profile").glob("toy-*/kept.json")
    kept.unlink()


@pytest.mark.parametrize(
    "change",
    [
        other_settings,
        other_weights,
        other_text,
        other_code,
        other_library,
        other_instructions,
        damaged,
        half_kept,
    ],
)
def test_whatever_a_number_comes_from_measures_anew(
    change: Callable[[Path, pytest.MonkeyPatch], None],
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("profile")
    assert PUT_BACK.format("toy") in run("profile")

    change(copy, monkeypatch)

    assert PUT_BACK.format("toy") not in run("profile")


def test_what_only_reads_scores_leaves_them_and_measures_its_own_anew(copy: Path) -> None:
    for command in ("profile", "causal"):
        run(command)

    measure_only(copy, "toy", causal_draws=7)

    assert PUT_BACK.format("toy") in run("profile")
    assert PUT_BACK.format("toy") not in run("causal")


def test_an_ablation_is_of_the_scores_that_lie_there(copy: Path) -> None:
    for command in ("profile", "causal"):
        run(command)

    profile = copy / "data/pythia_topology/metrics/profile/profile_toy.json"
    record = profile.with_name("induction-lab.sha256")
    profile.write_text(profile.read_text().replace('"seed": 0', '"seed": 0 '))
    record.unlink()

    assert PUT_BACK.format("toy") not in run("causal")


def test_an_experiment_is_always_measured(copy: Path) -> None:
    run("profile")
    said = induct("profile", "--model", "toy", "--out", copy / "mine")

    assert said.code == 0
    assert PUT_BACK.format("toy") not in said.out


def test_no_more_than_the_newest_are_kept(copy: Path) -> None:
    for seed in range(finished.KEPT + 2):
        measure_only(copy, "toy", seed=seed)
        run("profile")

    kept = list((copy / ".scratch" / "finished" / "pythia_profile").iterdir())
    assert len(kept) == finished.KEPT
