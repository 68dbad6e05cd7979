"""A stage that runs again trains only what it has not trained before."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from interp_core.cli import main
from interp_core.files.finished import KEPT
from interp_core.files.params import project_root

PUT_BACK = "{}: trained before with these settings and this code, put back"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a small text, its corpus, and one small model."""
    smoke = yaml.safe_load((project_root() / "profiles" / "smoke.yaml").read_text())
    section = smoke["reference_models"]
    section["models"] = {"one": {"layers": 1, "heads": 2, "width": 16}}
    section["recipe"] |= {"steps": 4, "warmup": 1, "checkpoint_every": 4}

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), size=4)) for _ in range(80)]
    text = "\n\n".join(" ".join(rng.choice(words, size=60)) for _ in range(40))
    (tmp_path / "text.txt").write_text(text)

    corpus = {"path": {"path": "text.txt"}, "vocabulary": 300, "validation_every": 4}
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("profile: test\n")
    write(tmp_path, {"corpus": corpus, "reference_models": section})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    train("corpus")
    return tmp_path


def write(project: Path, profile: dict) -> None:
    (project / "profiles" / "test.yaml").write_text(yaml.safe_dump(profile))


def change(project: Path, **section: object) -> None:
    profile = yaml.safe_load((project / "profiles" / "test.yaml").read_text())
    profile["reference_models"] |= section
    write(project, profile)


def train(*arguments: str) -> str:
    done = CliRunner().invoke(main, list(arguments or ("models",)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def lose(project: Path) -> dict[str, bytes]:
    """What DVC does before it runs a stage: its outputs go."""
    before = files(project / "data")
    shutil.rmtree(project / "data" / "models")
    shutil.rmtree(project / "data" / "training")
    return before


def test_a_model_that_is_added_trains_alone(project: Path) -> None:
    train()
    before = lose(project)
    size = {"layers": 1, "heads": 2, "width": 16}
    change(project, models={"one": size, "two": size | {"layers": 2}})

    said = train()

    after = files(project / "data")
    assert PUT_BACK.format("one") in said
    assert "two" not in said
    assert before.items() <= after.items()
    assert "models/two/model.safetensors" in after


@pytest.mark.parametrize("seed", [0, 1])
def test_other_settings_train_anew(project: Path, seed: int) -> None:
    train()
    before = lose(project)
    change(project, seed=seed)

    said = train()

    assert (PUT_BACK.format("one") in said) == (seed == 0)
    assert (files(project / "data") == before) == (seed == 0)


def test_a_kept_copy_that_was_damaged_is_not_put_back(project: Path) -> None:
    train()
    before = lose(project)
    (weights,) = (project / ".scratch" / "finished").rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")

    assert PUT_BACK.format("one") not in train()
    assert files(project / "data") == before


def test_what_is_written_elsewhere_is_always_trained(project: Path) -> None:
    train()
    said = train("models", "--out", "mine/models", "--history", "mine/training")

    assert PUT_BACK.format("one") not in said
    assert files(project / "mine" / "models") == files(project / "data" / "models")


@pytest.mark.parametrize(
    "options",
    [("--seed", "9"), ("--profile", "test"), ("--history", "mine"), ("--corpus", "data/corpus")],
)
def test_with_an_option_it_is_an_experiment_and_leaves_the_pipelines_files(
    options: tuple[str, str], project: Path
) -> None:
    train()
    before = files(project / "data")
    train("models", *options)

    assert files(project / "data") == before
    own = project / "outputs" / "models" / "test"
    assert (own / "one" / "training.json").is_file()
    histories = project / "mine" if "--history" in options else own
    assert [file.name for file in histories.glob("*.csv")] == ["one.csv"]


def test_the_history_of_an_experiment_lies_where_its_models_do(project: Path) -> None:
    train("models", "--seed", "9", "--out", "mine")
    assert (project / "mine" / "one.csv").is_file()
    assert not (project / "data" / "training").exists()


def test_part_of_a_stage_is_the_stage(project: Path) -> None:
    train("models", "--models", "one", "--processes", "1")
    assert (project / "data" / "models" / "one").is_dir()
    assert (project / "data" / "training" / "one.csv").is_file()
    assert not (project / "outputs").exists()


def test_a_command_of_the_core_starts_at_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(project / "data")
    (project / "packages").mkdir()
    monkeypatch.chdir(project / "packages")

    train("corpus")
    assert files(project / "data") == before
    train("corpus", "--max-characters", "3000")
    assert files(project / "data") == before
    train()

    assert (project / "data" / "models" / "one").is_dir()
    assert (project / "outputs" / "corpus" / "test" / "tokens.npz").is_file()
    assert not any((project / "packages").iterdir())


def test_an_experiment_of_other_settings_is_not_replaced(project: Path) -> None:
    train("models", "--seed", "8")
    train("models", "--seed", "8")
    before = files(project / "outputs")

    done = CliRunner().invoke(main, ["models", "--seed", "9"], catch_exceptions=False)
    assert done.exit_code == 2
    said = done.stderr.splitlines()[-1]
    assert "holds a training with other settings (seed 8 there, 9 asked for), so it stays" in said
    assert said.endswith("name another folder (--out)")
    assert files(project / "outputs") == before


def test_no_more_than_the_newest_are_kept(project: Path) -> None:
    for seed in range(KEPT + 2):
        change(project, seed=seed)
        train()

    kept = list((project / ".scratch" / "finished" / "reference_models").iterdir())
    assert len(kept) == KEPT
