"""Whatever a profile or an option says, no folder of a user's is deleted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

import cursive_circuits.cli
import eigen_phase.cli
import interp_core.cli
import mamba_induction.cli
from cursive_circuits.params import CursiveCircuits
from eigen_phase.params import EigenPhase
from interp_core.errors import InputError
from interp_core.files.params import check, profile_path, read_yaml
from interp_core.models.spec import catalogue
from interp_core.stimuli.corpus import CorpusParams
from interp_core.training.mamba_models import MambaModels
from interp_core.training.reference_models import ReferenceModels
from mamba_induction.params import MambaInduction
from mamba_neurons.params import MambaNeurons
from mamba_project import build_project
from pythia_topology.params import PythiaTopology

SECTIONS: dict[str, type[BaseModel]] = {
    "corpus": CorpusParams,
    "reference_models": ReferenceModels,
    "mamba_models": MambaModels,
    "pythia_topology": PythiaTopology,
    "eigen_phase": EigenPhase,
    "mamba_neurons": MambaNeurons,
    "mamba_induction": MambaInduction,
    "cursive_circuits": CursiveCircuits,
}
NO_FILE_NAMES = [
    "/home/me/thesis",
    "../thesis",
    "..",
    ".",
    ".thesis",
    "a/b",
    "a\\b",
    "",
    "my thesis",
    "a\nb",
    "thèse",
]
NAMED = [
    ("reference_models", "models"),
    ("mamba_models", "models"),
    ("eigen_phase", "conditions"),
    ("eigen_phase", "controls.conditions"),
]


def refused(program: click.Group, *arguments: object) -> str:
    """The one line with which a command ends that cannot be done, after what prompts begin with."""
    done = CliRunner().invoke(
        program, [str(argument) for argument in arguments], catch_exceptions=False
    )
    assert done.exit_code == 2, done.output
    said = [line for line in done.output.splitlines() if " begin with " not in line]
    assert len(said) == 1, done.output
    return said[0]


def with_name(section: str, key: str, name: str) -> dict[str, Any]:
    """The smoke profile's section, the first entry of one of its mappings also under another
    name."""
    content = read_yaml(profile_path("smoke"))[section]
    mapping = content
    for part in key.split("."):
        mapping = mapping[part]
    mapping[name] = next(iter(mapping.values()))
    return content


def thesis(place: Path) -> Path:
    """A folder of a user's that has what models and runs have, and something else."""
    place.mkdir(parents=True)
    (place / "thesis.tex").write_text("years of work")
    (place / "config.json").write_text('{"version": 1, "model_type": "gpt_neox"}')
    return place


def untouched(place: Path) -> bool:
    return {file.name for file in place.iterdir()} == {"thesis.tex", "config.json"}


# Names


@pytest.mark.parametrize("name", NO_FILE_NAMES)
@pytest.mark.parametrize(("section", "key"), NAMED)
def test_a_name_that_is_no_file_name_is_refused_wherever_a_profile_has_one(
    section: str, key: str, name: str
) -> None:
    schema: Any = SECTIONS[section]
    with pytest.raises(InputError) as problem:
        check(schema, with_name(section, key, name), where="mine.yaml")
    said = str(problem.value)
    shown = name.replace("\n", "\\n")  # a refusal is one printable line
    assert said.startswith(f"mine.yaml: `{key}.{shown}`: becomes a file's name: letters, digits,")


@pytest.mark.parametrize("name", NO_FILE_NAMES)
def test_the_names_of_models_are_held_to_the_same(name: str, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(yaml.safe_dump({"models": {name: {"source": "local", "path": "x"}}}))
    with pytest.raises(InputError, match="becomes a file's name"):
        catalogue(str(profile))


@pytest.mark.parametrize("name", ["tiny-1.4b", "Tiny_2", "1.4", "x.", "-s"])
@pytest.mark.parametrize(("section", "key"), NAMED)
def test_dots_dashes_and_digits_are_names(section: str, key: str, name: str) -> None:
    schema: Any = SECTIONS[section]
    check(schema, with_name(section, key, name), where="mine.yaml")


@pytest.mark.parametrize(
    "key", ["spectrum.runs", "controls.subspace_runs", "controls.free", "controls.clamped"]
)
def test_a_value_that_becomes_a_file_name_is_held_to_the_same(key: str) -> None:
    content = read_yaml(profile_path("smoke"))["eigen_phase"]
    part, field = key.split(".")
    listed = isinstance(content[part][field], list)
    content[part][field] = ["../thesis"] if listed else "../thesis"
    with pytest.raises(InputError, match="becomes a file's name"):
        check(EigenPhase, content, where="mine.yaml")


def mappings(schema: type[BaseModel], path: str) -> Iterator[tuple[str, Any]]:
    """Every mapping of a schema and of those inside it: where it stands, and the type of its
    keys."""
    for name, field in schema.model_fields.items():
        waiting = [field.annotation]
        while waiting:
            found = waiting.pop()
            waiting += get_args(found)
            if get_origin(found) is dict:
                yield f"{path}.{name}", get_args(found)[0]
            if isinstance(found, type) and issubclass(found, BaseModel):
                yield from mappings(found, f"{path}.{name}")


def test_no_mapping_of_a_profile_is_left_out() -> None:
    plain = {
        place
        for section, schema in SECTIONS.items()
        for place, key in mappings(schema, section)
        if key is str
    }
    assert plain == {
        "cursive_circuits.configurations",  # chosen by name, never written
        "eigen_phase.conditions.changes",  # fields of the training
        "eigen_phase.controls.conditions.changes",
    }


@pytest.mark.parametrize(
    ("program", "section"), [("models", "reference_models"), ("mamba-models", "mamba_models")]
)
def test_a_model_called_as_a_folder_leaves_the_folder(
    program: str, section: str, tmp_path: Path
) -> None:
    mine = thesis(tmp_path / "thesis")
    profile = tmp_path / "mine.yaml"
    profile.write_text(yaml.safe_dump({section: with_name(section, "models", str(mine))}))
    options = ("--profile", profile, "--out", tmp_path / "out", "--history", tmp_path / "history")
    assert "becomes a file's name" in refused(interp_core.cli.main, program, *options)
    assert "no " in refused(
        interp_core.cli.main, program, "--profile", "smoke", *options[2:], "--models", mine
    )
    assert untouched(mine)


def test_a_condition_called_as_a_folder_leaves_the_folder(tmp_path: Path) -> None:
    mine = thesis(tmp_path / "thesis-s0")
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        yaml.safe_dump(
            {"eigen_phase": with_name("eigen_phase", "conditions", str(tmp_path / "thesis"))}
        )
    )
    said = refused(eigen_phase.cli.main, "train", "--profile", profile, "--out", tmp_path / "out")
    assert "becomes a file's name" in said
    said = refused(
        eigen_phase.cli.main, "train", "--profile", "smoke", "--condition", tmp_path / "thesis"
    )
    assert "no condition" in said
    assert untouched(mine)


# Folders. Each of these trainings would take for ever, or fail for want of a corpus or a bank:
# nothing has begun.


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("models", "neox-2l"),
        ("models", "neox-4l"),
        ("mamba-models", "mamba-2l"),
        ("mamba-models", "twin-2l"),
    ],
)
def test_models_are_not_put_where_something_else_is(
    program: str, name: str, tmp_path: Path
) -> None:
    mine = thesis(tmp_path / "out" / name)
    places = (
        "--corpus",
        tmp_path / "none",
        "--out",
        tmp_path / "out",
        "--history",
        tmp_path / "history",
    )
    said = refused(interp_core.cli.main, program, "--profile", "smoke", *places)
    assert f"{mine} holds config.json and no files.json of this program, so it stays" in said
    assert untouched(mine)


@pytest.mark.parametrize(("program", "name"), [("models", "neox-2l"), ("mamba-models", "twin-2l")])
def test_a_history_does_not_take_the_place_of_a_users_table(
    program: str, name: str, tmp_path: Path
) -> None:
    mine = tmp_path / "history" / f"{name}.csv"
    mine.parent.mkdir()
    mine.write_text("years of work")
    places = ("--corpus", tmp_path / "none", "--out", tmp_path / "out", "--history", mine.parent)
    said = refused(interp_core.cli.main, program, "--profile", "smoke", *places)
    assert f"{mine} is there, and no record of this program lists it, so it stays" in said
    assert mine.read_text() == "years of work"


def test_a_run_is_not_put_where_something_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = thesis(tmp_path / "model")

    # As for a user without an account: nothing is announced for a training that will not begin.
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    endless = (
        "--num-steps",
        10**9,
        "--checkpoint-interval",
        10**9,
        "--eigen-interval",
        10**9,
        "--eval-interval",
        10**9,
    )
    for command in ("train", "run"):
        said = refused(eigen_phase.cli.main, command, "--profile", "smoke", *endless, "--out", mine)
        assert f"{mine} holds config.json and no files.json" in said
    assert untouched(mine)


@pytest.mark.parametrize(
    ("command", "folder"), [("train", "runs/tiled-s0"), ("run", "runs/placed-s0")]
)
def test_a_studys_runs_are_not_put_where_something_else_is(
    command: str, folder: str, tmp_path: Path
) -> None:
    mine = thesis(tmp_path / folder)
    said = refused(eigen_phase.cli.main, command, "--profile", "smoke", "--out", tmp_path)
    assert f"{mine} holds config.json and no files.json" in said
    assert untouched(mine)
    assert [place.name for place in (tmp_path / "runs").iterdir()] == [mine.name]


@pytest.mark.parametrize("name", ["handwriting", "control"])
def test_writers_are_not_put_where_something_else_is(name: str, tmp_path: Path) -> None:
    mine = thesis(tmp_path / "runs" / name)
    said = refused(cursive_circuits.cli.main, "train", "--profile", "smoke", "--out", tmp_path)
    assert f"{mine} holds config.json and no files.json" in said
    assert untouched(mine)


def test_a_tuned_model_is_not_put_where_something_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(build_project(tmp_path / "project"))
    mine = thesis(tmp_path / "out" / "mamba-tuned")
    endless = ("--epochs", 10**6, "--model", "mamba", "--out", tmp_path / "out")
    assert f"{mine} holds config.json and no files.json" in refused(
        mamba_induction.cli.main, "fine-tune", *endless
    )
    assert untouched(mine)


def test_a_corpus_leaves_the_tokenizer_of_a_model(tmp_path: Path) -> None:
    mine = thesis(tmp_path / "model")
    (mine / "tokenizer.json").write_text("{}")
    said = refused(interp_core.cli.main, "corpus", "--profile", "smoke", "--out", mine)
    assert f"{mine} has a tokenizer.json that is no corpus's, so it stays" in said
    assert (mine / "tokenizer.json").read_text() == "{}"
