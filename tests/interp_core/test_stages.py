"""Dependencies and parameters of a planted project: what a command runs and reads, and nothing
else.
"""

from pathlib import Path

import pytest
import yaml

from interp_core.errors import InputError
from interp_core.pipeline import stages
from interp_core.pipeline.commands import Command, Project
from interp_core.pipeline.import_closure import WITHOUT_EFFECT, Sources, reached

PYPROJECT = """
[project.scripts]
strings = "strings.cli:main"

[tool.hatch.build.targets.wheel]
packages = ["shared/core", "packages/strings"]
"""

DVC = """# Written beside a comment.
stages:
  strings_tune:
    desc: Tune
    cmd: strings tune
    deps:
      - data/wood
      - packages/strings/gone.py
    outs:
      - data/tuned

  strings_figures:
    desc: Draw
    cmd: strings figures
    deps:
      - data/tuned
    plots:
      - data/figures: {cache: false}
"""

FILES = {
    "pyproject.toml": PYPROJECT,
    "dvc.yaml": DVC,
    "params.yaml": "profile: laptop\n",
    "profiles/laptop.yaml": "strings: {pitch: 440, tension: 1.0, colour: red, processes: 2}\n",
    "shared/core/__init__.py": "",
    "shared/core/params.py": "def read_section(name, schema): ...\n",
    "shared/core/deep.py": "",
    "shared/core/chain.py": "from core import deep\n",
    "shared/core/types.py": "",
    "shared/core/rare.py": "",
    "shared/core/tools.py": (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from core.types import Anything\n"
        "def turn(x):\n"
        "    from core.chain import deep\n"
        "def never():\n"
        "    from core.rare import rare\n"
        "class Peg:\n"
        "    def loosen(self):\n"
        "        from core.rare import rare\n"
    ),
    "packages/strings/__init__.py": "",
    "packages/strings/cli.py": "",
    "packages/strings/params.py": (
        "class Strings:\n"
        "    pitch: int\n"
        "    tension: float\n"
        "    colour: str\n"
        "    processes: int\n"
        "    @property\n"
        "    def stretched(self):\n"
        "        return self.tension\n"
    ),
    "packages/strings/study.py": (
        "from core.params import read_section\n"
        "from strings.params import Strings\n"
        "def prepare():\n"
        "    return read_section('strings', Strings)\n"
    ),
    "packages/strings/measure.py": "from core.tools import turn\n",
    "packages/strings/figures.py": "",
    "packages/strings/workflow.py": (
        "from strings import study\n"
        "def tune(run):\n"
        "    from strings.measure import turn\n"
        "    run.params.processes\n"
        "    return _pitch(run), run.params.stretched, turn(1)\n"
        "def _pitch(run):\n"
        "    return run.params.pitch\n"
        "def figures(run):\n"
        "    from strings.figures import draw\n"
    ),
}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A project of one study and a core."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def command(root: Path, cmd: str) -> Command:
    return Command.of(Project.of(root), cmd)


def test_a_module_at_the_end_of_a_chain_of_imports_is_found(planted: Path) -> None:
    files = command(planted, "strings tune").files
    assert {"shared/core/chain.py", "shared/core/deep.py"} <= set(files)


def test_what_other_commands_and_types_import_is_left_out(planted: Path) -> None:
    files = command(planted, "strings tune").files
    assert not {"packages/strings/figures.py", "shared/core/types.py"} & set(files)
    assert "packages/strings/cli.py" not in files


@pytest.mark.parametrize("call", ["core.tools.never()", "peg.loosen()"])
def test_a_late_import_counts_where_its_function_is_named(planted: Path, call: str) -> None:
    assert "shared/core/rare.py" not in command(planted, "strings tune").files

    measure = planted / "packages" / "strings" / "measure.py"
    measure.write_text(
        f"import core.tools\nfrom core.tools import turn\ndef _():\n    {call}\n{call}\n"
    )
    assert "shared/core/rare.py" in command(planted, "strings tune").files


def test_methods_that_a_library_may_call_are_followed_though_nobody_names_them(
    planted: Path,
) -> None:
    (planted / "shared" / "core" / "deep.py").write_text(
        "import torch\nclass Layer(torch.nn.Module):\n    def anything(self):\n        from "
        "core.rare import rare\n"
    )
    assert "shared/core/rare.py" in command(planted, "strings tune").files


def test_parameters_are_those_that_the_reached_code_reads(planted: Path) -> None:
    assert command(planted, "strings tune").params == ["strings.pitch", "strings.tension"]
    assert command(planted, "strings figures").params == []


def test_a_dump_of_the_section_reads_all_but_what_it_leaves_out(planted: Path) -> None:
    (planted / "packages" / "strings" / "measure.py").write_text(
        "from core.tools import turn\n"
        "LEFT_OUT = {'colour', *('processes',)}\n"
        "def turn(params):\n"
        "    return params.model_dump(exclude=LEFT_OUT)\n"
    )
    assert command(planted, "strings tune").params == ["strings.pitch", "strings.tension"]


def test_stages_are_written_in_place_and_then_agree(planted: Path) -> None:
    with pytest.raises(InputError, match=r"dvc\.yaml is not what is declared.*make stages"):
        stages.check(planted)
    stages.write(planted)
    stages.check(planted)

    text = (planted / "dvc.yaml").read_text()
    tune = yaml.safe_load(text)["stages"]["strings_tune"]
    assert text.startswith("# Written beside a comment.\nstages:\n")
    assert tune["deps"][0] == "data/wood"
    assert "packages/strings/gone.py" not in tune["deps"]
    assert tune["params"] == [{"profiles/${profile}.yaml": ["strings.pitch", "strings.tension"]}]
    assert "params" not in yaml.safe_load(text)["stages"]["strings_figures"]


def test_a_stage_that_misses_a_file_is_named_with_the_mend(planted: Path) -> None:
    stages.write(planted)
    path = planted / "dvc.yaml"
    path.write_text(path.read_text().replace("      - shared/core/deep.py\n", ""))
    with pytest.raises(
        InputError, match=r"dvc\.yaml .*lacks `shared/core/deep\.py`.*run `make stages`"
    ):
        stages.check(planted)


@pytest.mark.parametrize(
    ("cmd", "said"), [("cello tune", "cello is no program"), ("strings bow", "has no function bow")]
)
def test_a_command_that_nobody_has_is_an_error(planted: Path, cmd: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        command(planted, cmd)


def test_what_has_no_effect_is_not_followed(planted: Path) -> None:
    folder = planted / "shared" / "interp_core"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "behind.py").touch()
    (folder / "progress.py").write_text("from interp_core import behind\n")
    (folder / "loop.py").write_text("from interp_core import progress\n")

    found = reached(Sources({"interp_core": folder}), "interp_core.loop").modules
    assert found == {"interp_core", "interp_core.loop"}
    assert "interp_core.progress" in WITHOUT_EFFECT
