"""`--set KEY=VALUE`: any setting of a study, checked and recorded as one that has an option."""

import inspect
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cursive_circuits import cli
from cursive_circuits.study import Cursive, prepare
from eigen_phase import cli as eigen_cli
from eigen_phase import study as eigen_study
from interp_core.console.options import Group, changed_settings, profile_option, settings
from interp_core.files import OPTIONS_FILE
from interp_core.files.params import profile_path, read_yaml

STUDIES = {
    "pythia_topology": "profile",
    "mamba_induction": "analyse",
    "mamba_neurons": "delta",
    "cursive_circuits": "heads",
    "eigen_phase": "curvature",
}


def call(study: str, *arguments: str) -> Result:
    main = import_module(f"{study}.cli").main
    return CliRunner().invoke(main, arguments, terminal_width=500)


def refused(study: str, *arguments: str) -> str:
    done = call(study, *arguments)
    assert done.exit_code == 2, done.output
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def begun(*said: str) -> Cursive:
    """The call that a command of a study gets."""
    got: list[Cursive] = []

    def start(_: str, *, settings: dict[str, Any], profile: str | None) -> Cursive:
        return prepare(profile, None, **settings)

    @click.group(cls=Group)
    def main() -> None:
        """Commands of cursive_circuits."""

    @main.command()
    @settings(cli.__file__, start, more=(profile_option,))()
    def heads(run: Any) -> None:
        """One of them."""
        got.append(run)

    done = CliRunner().invoke(main, ["heads", *said], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return got[0]


def test_a_setting_inside_a_part_is_changed_and_all_others_stay() -> None:
    changed = begun("--set", "handwriting.drill.share=0.125")
    before = begun().params

    drill = before.handwriting.drill.model_copy(update={"share": 0.125})
    handwriting = before.handwriting.model_copy(update={"drill": drill})
    assert changed.params == before.model_copy(update={"handwriting": handwriting})


def test_several_settings_follow_one_option_or_several() -> None:
    words = ["stimuli.prompts=16", "interventions.dose=[1, 2]", "tests.resamples=500"]
    in_a_row = begun("--set", *words).params
    assert in_a_row == begun(*[one for word in words for one in ("--set", word)]).params

    assert in_a_row.stimuli.prompts == 16
    assert in_a_row.interventions.dose == (1, 2)


def test_what_is_set_makes_an_experiment_with_a_record_of_its_own() -> None:
    bare, changed = begun(), begun("--set", "stimuli.prompts=16")
    assert bare.is_stage
    assert not changed.is_stage
    assert changed.folder != bare.folder

    others = begun("--set", "stimuli.prompts=17")
    records = [run.made_from({}) for run in (changed, others, begun("--set", "stimuli.prompts=16"))]
    assert records[0] == records[2] != records[1]


def test_a_command_whose_settings_are_no_options_makes_an_experiment_too() -> None:
    said = ["spectrum.checkpoints=5"]
    run = eigen_study.prepare(
        None, None, **changed_settings(eigen_cli.__file__, said, profile=None)
    )
    assert run.params.spectrum.checkpoints == 5
    assert not run.is_stage
    assert eigen_study.prepare(None, None).is_stage


def test_a_setting_is_set_in_the_profile_that_is_named() -> None:
    smoke = read_yaml(profile_path("smoke"))["cursive_circuits"]
    changed = begun("--profile", "smoke", "--set", "stimuli.seed=5").params.stimuli
    assert changed.model_dump() == {**smoke["stimuli"], "seed": 5}


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_takes_it_and_help_says_so(study: str) -> None:
    assert "--set KEY=VALUE" in call(study, STUDIES[study], "--help").stdout


@pytest.mark.parametrize(
    ("study", "said", "says"),
    [
        ("eigen_phase", "spectrum.chekpoints=8", "unknown key `spectrum.chekpoints`; did you mean"),
        ("eigen_phase", "spectrm.checkpoints=8", "unknown key `spectrm`; did you mean `spectrum`?"),
        ("eigen_phase", "spectrum.checkpoints=1", "`spectrum.checkpoints`: Input should be"),
        ("eigen_phase", "spectrum.checkpoints=many", "should be a valid integer"),
        ("eigen_phase", "spectrum.checkpoints=[1", "--set spectrum.checkpoints: not valid YAML"),
        ("eigen_phase", "spectrum.checkpoints=1\nb: 2", "takes one value"),
        ("eigen_phase", "spectrum.checkpoints.x=1", "`spectrum.checkpoints` is a value, and holds"),
        ("eigen_phase", "spectrum.checkpoints", "--set takes KEY=VALUE"),
        ("eigen_phase", "spectrum.=8", "--set takes KEY=VALUE"),
        ("eigen_phase", "=8", "--set takes KEY=VALUE"),
        ("eigen_phase", "controls.free=none", "controls.free: no condition none"),
        ("cursive_circuits", "handwriting.drill.shar=0", "did you mean `share`?"),
        ("cursive_circuits", "handwriting.drill.share=1e999", "`handwriting.drill.share`: Input"),
        ("cursive_circuits", "stimuli=", "`stimuli`: Input should be"),
        ("pythia_topology", "period=3", "--set period: it has an option, --period"),
        ("pythia_topology", "n_sequences=3", "--set n_sequences: it has an option, --n-sequences"),
    ],
)
def test_what_cannot_be_set_is_one_line_that_names_it(study: str, said: str, says: str) -> None:
    assert says in refused(study, STUDIES[study], "--set", said)


def test_one_setting_has_one_value() -> None:
    twice = ("--set", "stimuli.prompts=16", "--set", "stimuli.prompts=17")
    assert "one key stands there twice" in refused("cursive_circuits", "heads", *twice)

    both = ("--dataset", "numpy", "--set", "dataset.validation_every=5")
    assert "--dataset replaces it" in refused("mamba_induction", "analyse", *both)

    option = ("--words", "3", "--set", "sampling.words=4")
    assert "--words says it too" in refused("cursive_circuits", "sample", *option)


@pytest.mark.parametrize("study", STUDIES)
def test_no_setting_is_taken_for_something_else_that_a_call_is_told(study: str) -> None:
    told = inspect.signature(import_module(f"{study}.study").prepare).parameters
    declared = json.loads(Path(import_module(study).__path__[0], OPTIONS_FILE).read_text())
    schema = getattr(import_module(f"{study}.params"), declared["schema"])
    assert not told.keys() & schema.model_fields.keys()


def test_what_is_wrong_with_the_profile_is_not_said_of_the_option(tmp_path: Path) -> None:
    text = profile_path("smoke").read_text().replace("probe_batches: ", "probe_batchs: ")
    own = tmp_path / "own.yaml"
    own.write_text(text)
    arguments = ("curvature", "--profile", str(own), "--set", "spectrum.checkpoints=3")
    assert refused("eigen_phase", *arguments).startswith(f"{own}: eigen_phase: unknown key")
