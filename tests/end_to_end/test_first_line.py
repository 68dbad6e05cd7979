"""What a command says before it loads PyTorch: a sign of life, or what is wrong with its model.

Each command runs until it imports PyTorch or transformers. Two packages of these names stand in
their place, and end the process: what was said by then was said before.
"""

import json
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import click
import pytest

import small_models as small

STUDIES = ("pythia_topology", "mamba_induction", "mamba_neurons", "cursive_circuits", "eigen_phase")
LOADED = 77  # how a process ends that imported one of them

# Who draws from files alone, or needs a second model.
LOADS_NOTHING = {
    *(("pythia_topology", name) for name in ("figures", "crosssize")),
    *(("mamba_induction", name) for name in ("figures", "summary")),
    *(("mamba_neurons", name) for name in ("figures", "compare")),
}

# One process a study: what all commands import is imported once, and each runs in a copy.
PROGRAM = """
import json, os, sys
study, stand_ins, commands = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, stand_ins)
from importlib import import_module
main = import_module(study + ".cli").main
if study not in ("cursive_circuits", "eigen_phase"):  # whose rooms load PyTorch
    import_module(study + ".study")
said = []
for number, arguments in enumerate(commands):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1), os.dup2(write, 2)
        sys.argv = [study, *arguments]
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)
        os._exit(0)
    os.close(write)
    text = open(read).read()
    said.append((os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text))
print("said", json.dumps(said))
"""


@cache
def naming_a_model(study: str) -> list[str]:
    """The study's commands that take a model, or run directories."""
    commands: dict[str, click.Command] = import_module(f"{study}.cli").main.commands
    taking = ("model", "run_directories")
    return [
        name
        for name, command in commands.items()
        if any(parameter.name in taking for parameter in command.params)
    ]


def run(study: str, commands: list[list[str]], stand_ins: Path) -> list[tuple[int, str]]:
    """How each command ended, and what it had said."""
    program = [sys.executable, "-c", PROGRAM, study, str(stand_ins), json.dumps(commands)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.removeprefix("said "))


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two packages, beside an empty working directory, where no hub answers."""
    for name in ("torch", "transformers"):
        (tmp_path / "stand_ins" / name).mkdir(parents=True)
        file = tmp_path / "stand_ins" / name / "__init__.py"
        file.write_text(f"import os, sys\nsys.stdout.flush()\nos._exit({LOADED})\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "stand_ins"


def model_of(study: str, folder: Path) -> Path:
    """A model that the study's commands can load, as far as its folder shows."""
    place = folder / "mine"
    if study in ("cursive_circuits", "eigen_phase"):
        place.mkdir()
        (place / "config.json").write_text("{}")
    else:
        small.build("gpt2" if study == "pythia_topology" else "mamba").save_pretrained(place)
    return place


@pytest.mark.parametrize("study", STUDIES)
def test_a_command_says_what_it_loads_before_it_loads_pytorch(
    study: str, stand_ins: Path, tmp_path: Path
) -> None:
    model = str(model_of(study, tmp_path))
    names = naming_a_model(study)
    naming = [] if study == "eigen_phase" else ["--model"]
    commands = [[name, *naming, model] for name in names]

    for name, (code, text) in zip(names, run(study, commands, stand_ins), strict=True):
        if (study, name) not in LOADS_NOTHING:
            assert code == LOADED, (name, text)
        if code == LOADED:
            lines = text.splitlines()
            assert f"loading {model} ..." in lines, (name, text)


@pytest.mark.parametrize("study", ["pythia_topology", "mamba_induction", "mamba_neurons"])
def test_a_hub_that_cannot_be_reached_is_said_before_anything_is_made(
    study: str, stand_ins: Path, tmp_path: Path
) -> None:
    names = [name for name in naming_a_model(study) if (study, name) not in LOADS_NOTHING]
    commands = [[name, "--model", "lab/absent"] for name in names]

    for name, (code, text) in zip(names, run(study, commands, stand_ins), strict=True):
        assert (code, text.count("\n")) == (2, 1), (name, text)
        assert text.startswith("error: lab/absent at revision main"), name
        assert "the hub cannot be reached" in text, name

    # Neither a corpus nor a folder of results.
    assert list((tmp_path / "empty").rglob("*")) == []


@pytest.mark.parametrize(
    ("study", "arguments", "says"),
    [
        ("cursive_circuits", ["heads", "--model", "absent"], "no checkpoint absent"),
        ("cursive_circuits", ["heads", "--model", "."], "is not a run directory"),
        ("mamba_neurons", ["delta", "--texts", "absent.txt"], "absent.txt does not exist"),
        ("mamba_neurons", ["delta", "--transformer", "lab/absent"], "cannot be reached"),
        ("mamba_induction", ["fine-tune", "--dataset", "absent.txt"], "absent.txt"),
        ("mamba_induction", ["analyse", "--twin", "lab/absent"], "cannot be reached"),
        ("pythia_topology", ["causal", "--models", "lab/absent"], "cannot be reached"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_loaded(
    study: str, arguments: list[str], says: str, stand_ins: Path
) -> None:
    if study.startswith("mamba"):
        model = model_of(study, stand_ins)
        arguments = [*arguments, "--model", str(model)]

    ((code, text),) = run(study, [arguments], stand_ins)
    assert (code, text.count("\n")) == (2, 1), text
    assert says in text
    assert not list(Path.cwd().rglob("*"))
