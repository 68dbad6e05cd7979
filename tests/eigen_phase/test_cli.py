"""The commands as a person types them."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from eigen_phase.cli import main
from eigen_phase.params import EigenPhase
from eigen_phase.run_directory import RunDirectory
from interp_core.files.artifacts import load_arrays
from interp_core.files.params import profile_path

SMALL = ["--profile", "smoke", "--num-steps", "10", "--track-top-k-eigenvalues", "0"]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def refused(*arguments: str) -> str:
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    assert done.output.strip().count("\n") == 0, done.output
    return done.output


def test_help_needs_no_torch_and_no_profile() -> None:
    heavy = "{'torch', 'numpy', 'pydantic'}"
    program = f"import sys; from eigen_phase import cli; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    for command in ("train", "curvature", "transition", "controls", "visualize", "run"):
        assert call(command, "--help").exit_code == 0


@pytest.mark.parametrize("spelling", ["--vocab_size", "--vocab-size"])
def test_seed_options_are_taken_in_both_spellings(spelling: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = call("train", *SMALL, spelling, "33", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert RunDirectory.open(out).training.vocab_size == 33
    assert "10 steps, pattern accuracy" in done.output


def test_a_training_of_other_settings_in_the_same_folder_stays(project: Path) -> None:
    asked = (*SMALL, "--seed", "3")
    for _ in range(2):  # the same settings again are trained again
        assert call("train", *asked).exit_code == 0
    folder = project / "outputs" / "eigen_phase" / "smoke" / "tiled-s3"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    for command, looks in (("train", ()), ("run", ("--track-top-k-eigenvalues", "1"))):
        said = refused(command, *asked, *looks, "--batch-size", "5")
        assert f"{folder} holds a training with other settings (batch_size " in said
        assert said.endswith("name another folder (--out)\n")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before

    # One that cannot be read is no training.
    (folder / "config.json").write_text("{")
    assert call("train", *asked, "--batch-size", "5").exit_code == 0


@pytest.mark.parametrize(
    ("option", "value", "field", "expected"),
    [
        ("--seq_length", "20", "seq_length", 20),
        ("--n_layers", "3", "n_layers", 3),
        ("--n_heads", "1", "n_heads", 1),
        ("--batch_size", "5", "batch_size", 5),
        ("--eigen_interval", "4", "eigen_interval", 4),
        ("--checkpoint_interval", "3", "checkpoint_interval", 3),
        ("--mlp_ratio", "2", "mlp_ratio", 2),
        ("--learning_rate", "0.001", "learning_rate", 0.001),
        ("--seed", "5", "seed", 5),
        ("--condition", "placed", "data", "placed"),
    ],
)
def test_each_option_reaches_the_run_and_changes_it(
    option: str, value: str, field: str, expected: object, tmp_path: Path
) -> None:
    call("train", *SMALL, "--out", str(tmp_path / "plain"))
    done = call("train", *SMALL, option, value, "--out", str(tmp_path / "changed"))
    assert done.exit_code == 0, done.output
    plain, changed = (RunDirectory.open(tmp_path / name) for name in ("plain", "changed"))
    assert getattr(changed.training, field) == expected
    assert plain.training != changed.training
    same = plain.history["loss"].shape == changed.history["loss"].shape and np.array_equal(
        plain.history["loss"], changed.history["loss"]
    )
    kept = plain.checkpoint_steps == changed.checkpoint_steps
    assert not (same and kept)


def test_one_run_from_training_to_figures(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = (
        "--profile",
        "smoke",
        "--num_steps",
        "30",
        "--track_top_k_eigenvalues",
        "2",
        "--out",
        str(out),
    )
    done = call("run", *settings)
    assert done.exit_code == 0, done.output
    figures = {file.name for file in (out / "figures").iterdir()}
    assert {
        "phase.png",
        "heads.png",
        "patterns.png",
        "eigenvalues.png",
        "alignment.png",
        "density.png",
    } <= figures
    assert RunDirectory.open(out).history["eigenvalues"].shape[1] == 2
    assert (out / "curvature.npz").exists()

    # All of that is the run's own, and goes with it; a file of the user's, and a run of another
    # name, stay.
    assert call("train", *settings).exit_code == 0
    assert not (out / "curvature.npz").exists()
    assert not (out / "figures").exists()
    assert "holds tiled-s0 of eigen_phase, not tiled-s1 of eigen_phase" in refused(
        "train", *settings, "--seed", "1"
    )
    (out / "figures").mkdir()
    (out / "figures" / "mine.png").write_text("mine")
    assert "holds figures/mine.png, which its files.json does not list" in refused(
        "train", *settings
    )


def test_commands_read_run_directories(small_run: RunDirectory, tmp_path: Path) -> None:
    copy = tmp_path / "mine-s7"
    shutil.copytree(small_run.folder, copy)
    done = call("visualize", str(copy), "--profile", "smoke")
    assert done.exit_code == 0, done.output
    assert str(copy / "figures" / "phase.png") in done.output
    done = call("transition", str(copy), "--profile", "smoke", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert (
        "transition"
        in json.loads((tmp_path / "transition.json").read_text())["runs"]["tiled-s0"]["verdict"]
    )
    cluster = ("--cluster", "local:2")
    done = call("curvature", str(copy), "--profile", "smoke", *cluster)
    assert done.exit_code == 0, done.output
    assert "trace" in done.output
    assert "note: --cluster changes nothing" in done.output
    looked_at = len(load_arrays(copy / "curvature.npz")["step"])

    changed = ("--set", f"spectrum.checkpoints={looked_at - 1}")
    assert call("curvature", str(copy), "--profile", "smoke", *changed).exit_code == 0
    assert len(load_arrays(copy / "curvature.npz")["step"]) == looked_at - 1


@pytest.mark.parametrize("command", ["visualize", "curvature"])
def test_a_folder_that_would_not_be_written_is_refused(command: str, tmp_path: Path) -> None:
    run, out = str(tmp_path / "run"), tmp_path / "out"
    assert "goes into it" in refused(command, run, "--profile", "smoke", "--out", str(out))
    assert not out.exists()


def test_a_whole_study_in_a_folder_of_its_own(
    section: EigenPhase, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # In this process; the pipeline's test trains the same runs in two.
    profile = yaml.safe_load(profile_path("smoke").read_text())
    profile["eigen_phase"]["processes"] = 1
    alone = tmp_path_factory.mktemp("profile") / "alone.yaml"
    alone.write_text(yaml.safe_dump(profile))

    started = time.monotonic()
    done = call("run", "--profile", str(alone), "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert time.monotonic() - started < 300
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {*section.runs, ".writable"} - {
        ".writable"
    }
    assert {path.name for path in (tmp_path / "control_runs").iterdir()} == set(
        section.control_runs
    )
    report = json.loads((tmp_path / "metrics" / "controls" / "controls.json").read_text())
    assert report["runs"]["unrepeated-s0"]["verdict"] == "no transition"
    assert (tmp_path / "figures" / "controls.png").exists()
    for file in tmp_path.rglob("*.json"):
        json.loads(file.read_text())

    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    profile["eigen_phase"]["training"]["learning_rate"] = 0.0123
    alone.write_text(yaml.safe_dump(profile))
    for command in ("train", "run"):
        said = refused(command, "--profile", str(alone), "--out", str(tmp_path))
        assert "holds a training with other settings (learning_rate " in said
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--n_heads", "3"), "n_heads (3)"),
        (("--eigen_interval", "0"), "--eigen-interval: "),
        (("--track_top_k_eigenvalues", "100000"), "parameters"),
        (("--condition", "placed", "--pattern-length", "2", "40"), "longer than the sequence"),
        (("--condition", "tild"), "no condition tild; known here: tiled"),
        (("--data", "stripes"), "--data: "),
        (("--num_steps", "0"), "--num-steps: "),
        (("--learning_rate", "-1"), "--learning-rate: "),
    ],
)
def test_bad_input_is_one_line_that_helps(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    assert message in refused(
        "train", "--profile", "smoke", *arguments, "--out", str(tmp_path / "run")
    )


def test_directories_that_are_no_runs_are_named(tmp_path: Path) -> None:
    assert "not a run directory" in refused("visualize", str(tmp_path), "--profile", "smoke")
    assert "not a run directory" in refused(
        "curvature", "--profile", "smoke", "--out", str(tmp_path)
    )
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds notes.txt and no files.json" in refused("train", *SMALL, "--out", str(tmp_path))
    assert (tmp_path / "notes.txt").exists()


def test_no_look_at_the_hessian_is_no_error_until_it_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("train", *SMALL, "--out", str(out)).exit_code == 0
    assert call("visualize", str(out), "--profile", "smoke").exit_code == 0
    assert call("page", str(out), "--profile", "smoke").exit_code == 0
    assert "the Hessian was not looked at" in refused("curvature", str(out), "--profile", "smoke")


def test_a_run_whose_only_look_is_at_step_0_has_no_curvature(tmp_path: Path) -> None:
    out = tmp_path / "run"
    looks = ("--profile", "smoke", "--num-steps", "6", "--warmup", "1", "--eigen-interval", "8")
    few = ("--track-top-k-eigenvalues", "1", "--probe-sequences", "2")
    assert "the only look would be at step 0" in refused("run", *looks, "--out", str(out))
    assert "must be above 0" in refused("run", *SMALL, "--out", str(out))
    assert not out.exists()

    assert call("train", *looks, *few, "--out", str(out)).exit_code == 0
    told = "the Hessian was not looked at after step 0"
    assert told in refused("curvature", str(out), "--profile", "smoke")
