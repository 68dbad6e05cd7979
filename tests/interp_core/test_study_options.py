"""Options of the studies' commands: the settings that they read, with the profile's values."""

import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, TypeAdapter, ValidationError

from interp_core.console.options import Setting
from interp_core.files import OPTIONS_FILE
from interp_core.files.params import profile_path, read_yaml
from interp_core.pipeline.commands import schemas_of
from interp_core.pipeline.import_closure import Sources

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted(file.parent.name for file in ROOT.glob(f"packages/*/{OPTIONS_FILE}"))
TYPED = {"integer": "7", "float": "0.25", "text": "word", "path": "a/file", "flag": "true"}


def schema_of(study: str, part: str) -> type[BaseModel]:
    ((_, name),) = set(schemas_of(Sources.installed(study), f"{study}.study"))
    schema = getattr(import_module(f"{study}.params"), name)
    return schema.model_fields[part].annotation if part else schema


def declared(study: str) -> dict[str, Any]:
    return json.loads((ROOT / "packages" / study / OPTIONS_FILE).read_text())


def commands(study: str) -> Mapping[str, click.Command]:
    return import_module(f"{study}.cli").main.commands


def help_of(study: str, command: str, *arguments: str) -> str:
    main = import_module(f"{study}.cli").main
    said = CliRunner().invoke(main, [command, *arguments, "--help"], terminal_width=500)
    assert said.exit_code == 0
    return " ".join(said.stdout.split())


def test_every_study_has_options() -> None:
    assert sorted(file.parent.name for file in ROOT.glob("packages/*/cli.py")) == STUDIES


@pytest.mark.parametrize("study", STUDIES)
def test_an_option_is_a_field_of_its_type_with_words(study: str) -> None:
    for part, settings in declared(study)["settings"].items():
        fields = schema_of(study, part).model_fields
        assert list(settings) == [name for name in fields if name in settings]

        for name, kind in settings.items():
            assert re.fullmatch(r"[A-Z`].+\.", kind["help"]), f"{name} has no comment in params.py"
            value = kind.get("choices", [TYPED[kind["type"]]])[0]
            is_list = "several" in kind or "values" in kind
            values = [value] * kind.get("values", 1) if is_list else value

            # Bounds may refuse the value; a value of another type is another error.
            try:
                TypeAdapter(fields[name].rebuild_annotation()).validate_python(values)
            except ValidationError as problem:
                kinds = {error["type"] for error in problem.errors()}
                assert not [one for one in kinds if re.search("parsing|type|literal", one)], name


@pytest.mark.parametrize("study", STUDIES)
def test_help_shows_what_a_command_reads_with_the_profiles_value(study: str) -> None:
    content = declared(study)
    values = read_yaml(profile_path())[content["section"]]

    for command in commands(study).values():
        settings = [one for one in command.params if isinstance(one, Setting)]
        if not settings:
            continue

        shown = help_of(study, str(command.name))
        for one in settings:
            assert (one.opts[0] in shown) is not one.hidden
            if one.hidden or one.name is None:
                continue
            inside = values[one.place[1]] if len(one.place) == 3 else values
            value = inside.get(one.name)
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                assert re.search(rf"{one.opts[0]}\b.*?\[laptop: {re.escape(str(value))}\]", shown)


def test_help_shows_the_values_of_a_profile_that_is_named_before() -> None:
    assert "[smoke: " in help_of("pythia_topology", "profile", "--profile", "smoke")
    assert "[laptop: " not in help_of("pythia_topology", "profile", "--profile", "smoke")


def test_help_answers_where_there_is_no_profile() -> None:
    shown = help_of("pythia_topology", "profile", "--profile", "nowhere")
    assert "--n-sequences" in shown
    assert "[nowhere" not in shown


@pytest.mark.parametrize(
    ("study", "command", "reads", "leaves"),
    [
        ("pythia_topology", "profile", "period", "causal_draws"),
        ("pythia_topology", "causal", "causal_draws", "composition_draws"),
        ("pythia_topology", "causal", "n_sequences", "revisions"),  # of the scores that it needs
        ("pythia_topology", "crosssize", "equivalence_margin", "path_pairs"),
        ("mamba_induction", "fine_tune", "epochs", "causal_draws"),
        ("mamba_induction", "causal", "causal_draws", "epochs"),
        ("mamba_induction", "run_all", "epochs", ""),
        ("mamba_neurons", "delta", "text_limit", "label_draws"),
        ("mamba_neurons", "compare", "own_tokens", "label_draws"),
        ("mamba_neurons", "whole", "label_draws", ""),
        ("cursive_circuits", "train", "processes", "batch_size"),
        ("cursive_circuits", "heads", "batch_size", "processes"),
    ],
)
def test_a_command_reads_what_its_functions_read(
    study: str, command: str, reads: str, leaves: str
) -> None:
    found = declared(study)["commands"][command][""]
    assert reads in found
    assert leaves not in found


def test_a_setting_that_a_command_leaves_is_taken_and_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    main = import_module("pythia_topology.cli").main
    arguments = ["profile", "--causal_draws", "5", "--lag-values", "0"]
    said = CliRunner().invoke(main, arguments, prog_name="induct")
    note, error = said.stderr.splitlines()
    assert note == "note: --causal-draws changes nothing in `induct profile`"
    assert error.startswith("error: --lag-values: ")


@pytest.mark.parametrize(
    ("study", "arguments"),
    [
        ("mamba_induction", ["figures", "--dataset", "none", "--lr", "-1"]),
        ("mamba_neurons", ["page", "--plots-dir", "plots", "--top-k", "0"]),
    ],
)
def test_an_option_that_is_no_setting_is_named_as_it_is_typed(
    study: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    main = import_module(f"{study}.cli").main
    said = CliRunner().invoke(main, arguments, prog_name=study)
    told = f"note: {arguments[1]} changes nothing in `{study} {arguments[0]}`"
    assert told in said.stderr.splitlines()
