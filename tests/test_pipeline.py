"""The pipeline as a description: what is derived is right, and what is declared fits."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import yaml

from cursive_circuits.params import CursiveCircuits
from eigen_phase.params import EigenPhase
from interp_core.files.params import read_section
from interp_core.models.spec import catalogue
from interp_core.pipeline import stages
from interp_core.pipeline.commands import (
    ALWAYS,
    PARAMETERS_WITHOUT_EFFECT,
    Command,
    Project,
)
from interp_core.pipeline.import_closure import WITHOUT_EFFECT, Sources
from interp_core.stimuli.corpus import CorpusParams
from interp_core.training.reference_models import ReferenceModels
from mamba_induction.params import MambaInduction
from mamba_neurons.params import MambaNeurons
from pythia_topology.params import PythiaTopology

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
ANSWERS = [stage for stage in STAGES if STAGES[stage]["cmd"].endswith(" answers")]
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


def names(entries: list) -> set[str]:
    """Paths of dependencies or outputs, with or without settings of their own."""
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


def parameters(stage: dict) -> list[str]:
    """Keys of the profile that a stage depends on; what only reads files has none."""
    return [name for entry in stage.get("params", []) for keys in entry.values() for name in keys]


def test_what_is_committed_is_what_make_stages_writes() -> None:
    stages.check(ROOT)


def test_no_stage_waits_for_what_changes_no_byte() -> None:
    quiet = {
        str(file.relative_to(ROOT))
        for module in WITHOUT_EFFECT
        if (file := Project.of(ROOT).sources.file_of(module)) is not None
    }
    assert len(quiet) == len(WITHOUT_EFFECT)

    for name, stage in STAGES.items():
        assert not names(stage["deps"]) & quiet, name
        for key in parameters(stage):
            assert key.rpartition(".")[2] not in PARAMETERS_WITHOUT_EFFECT, name


@pytest.mark.parametrize("stage", STAGES)
def test_what_has_no_effect_brings_no_module_that_has_one(stage: str) -> None:
    """A stage runs the imports of a module that it does not depend on."""
    project = of_this_tree()
    command = Command.of(project, STAGES[stage]["cmd"])
    named = {module for piece in command.reached.pieces for module in piece.modules}
    brought = loaded_with(named & WITHOUT_EFFECT.keys(), project.sources)

    listed = {project.sources.file_of(module) for module in command.reached.modules | ALWAYS}
    files = {project.sources.file_of(module) for module in brought - WITHOUT_EFFECT.keys()}
    with_code = {file for file in files if file is not None and file.read_text().strip()}
    assert not with_code - listed


@cache
def of_this_tree() -> Project:
    """Read once: its modules stay parsed."""
    return Project.of(ROOT)


def loaded_with(modules: Iterable[str], sources: Sources) -> set[str]:
    """Modules of ours that are loaded when these are, with them and the packages they are in."""
    found: set[str] = set()
    waiting = [*modules]

    while waiting:
        module = waiting.pop()
        parts = module.split(".")
        waiting += [".".join(parts[:end]) for end in range(1, len(parts))]

        if module not in found:
            found.add(module)
            at_import = [one for one in sources.pieces(module) if one.function is one.owner is None]
            waiting += [name for piece in at_import for name in piece.modules]
        waiting = [one for one in waiting if one not in found]

    return found


def test_the_packages_that_the_corpus_comes_from_are_pinned_to_one_version() -> None:
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith(("numpy==", "matplotlib=="))
    ]
    assert len(pins) == 2
    assert all(";" not in pin for pin in pins)
    assert "constraints.txt" in names(STAGES["corpus"]["deps"])


def test_no_registry_is_named_anywhere() -> None:
    assert "://" not in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_fits_the_schemas_and_knows_its_models(profile: str) -> None:
    known = catalogue(profile)
    study = read_section("pythia_topology", PythiaTopology, profile)
    assert read_section("eigen_phase", EigenPhase, profile).runs
    neurons = read_section("mamba_neurons", MambaNeurons, profile)
    assert {neurons.model, neurons.transformer} <= set(known)
    assert read_section("mamba_induction", MambaInduction, profile).model in known
    assert read_section("cursive_circuits", CursiveCircuits, profile).configurations
    read_section("corpus", CorpusParams, profile)
    trained = read_section("reference_models", ReferenceModels, profile).models
    for name in study.models:
        assert name in known
        assert known[name].source == "hub" or name in trained


@pytest.mark.parametrize(
    ("library", "commands"),
    [("transformer_lens", ("",)), ("transformers", ("cursive-circuits ", "eigen-phase "))],
    ids=["nobody waits for transformer_lens", "models of plain torch do not wait for transformers"],
)
def test_no_stage_imports_what_takes_seconds_and_is_not_needed(
    library: str, commands: tuple[str, ...]
) -> None:
    chosen = [stage["cmd"] for stage in STAGES.values() if stage["cmd"].startswith(commands)]
    assert chosen
    project = Project.of(ROOT)
    for file in set().union(*(Command.of(project, command).files for command in chosen)):
        tree = ast.parse((ROOT / file).read_text())
        tops = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any(library in ast.unparse(node) for node in tops), file


READ_IN_A_CLONE = ("answers.json", "/metrics", "/figures", "/summary", "training")


def test_outputs_that_are_read_in_a_clone_are_committed_and_large_ones_are_not() -> None:
    for stage in STAGES.values():
        for kind in ("metrics", "outs", "plots"):
            for entry in stage.get(kind, []):
                read = any(part in next(iter(names([entry]))) for part in READ_IN_A_CLONE)
                assert isinstance(entry, dict) == read, entry

                if read:
                    assert next(iter(entry.values())) == {"cache": False}


def test_the_only_metrics_that_dvc_compares_are_the_answers_of_every_study() -> None:
    found = {
        stage: names(content["metrics"])
        for stage, content in STAGES.items()
        if "metrics" in content
    }
    assert found == {"answers": {"data/answers.json"}}

    studies = {path.parent.name for path in (ROOT / "packages").glob("*/__init__.py")}
    merged = {dep for dep in names(STAGES["answers"]["deps"]) if dep.startswith("data/")}
    assert merged == {f"data/{study}/answers.json" for study in studies}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_parameter_of_a_stage_is_in_every_profile(profile: str) -> None:
    content = yaml.safe_load((ROOT / "profiles" / f"{profile}.yaml").read_text())
    for stage in STAGES.values():
        for name in parameters(stage):
            value = content
            for part in name.split("."):
                assert part in value, f"{profile}.yaml lacks {name}"
                value = value[part]


@pytest.mark.parametrize("stage", ANSWERS)
def test_answers_depend_on_files_alone(stage: str) -> None:
    assert parameters(STAGES[stage]) == []
