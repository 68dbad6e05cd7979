"""One set of numbers: the same bytes on every x86-64 processor with AVX2, whoever made it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from interp_core import processor

HERE = Path(__file__).parent
ROOT = HERE.parent
PROGRAM = HERE / "few_steps.py"
COMMITTED = json.loads((HERE / "committed_digits.json").read_text())
COMMANDS = (
    "interp_core.cli",
    *(f"{folder.name}.cli" for folder in sorted((ROOT / "packages").iterdir())),
)


def environment(**changes: str) -> dict[str, str]:
    """The environment of a shell in which nothing was chosen, with some changes."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in (*processor.PINNED, processor.SWITCH)
    }
    return (
        kept
        | {"PYTHONPATH": os.pathsep.join(str(ROOT / home) for home in ("shared", "packages"))}
        | changes
    )


def output_of(*command: str, **changes: str) -> str:
    """What a program prints."""
    done = subprocess.run(
        command, env=environment(**changes), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_few_steps_of_every_training_give_the_committed_bytes_whatever_the_shell_says() -> None:
    other = {"MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "SkylakeX", "NUMBA_CPU_NAME": "host"}
    assert json.loads(output_of(sys.executable, str(PROGRAM), **other)) == COMMITTED


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("cpu", ["Haswell", "EPYC"])
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="emulation needs qemu-user")
def test_another_makers_processor_gives_the_committed_bytes(cpu: str) -> None:
    assert (
        json.loads(output_of("qemu-x86_64", "-cpu", cpu, sys.executable, str(PROGRAM))) == COMMITTED
    )


def test_native_leaves_every_choice_to_the_libraries() -> None:
    code = (
        "import os; from interp_core import processor; processor.settle();"
        "print(processor.instructions(), *(name for name in processor.PINNED if name in "
        "os.environ))"
    )
    assert output_of(sys.executable, "-c", code, INDUCTION_LAB_CPU="native").split() == ["native"]


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_chooses_before_any_library_is_loaded(module: str) -> None:
    # Commands import what is heavy inside themselves: so nothing has looked at the environment when
    # they begin.
    code = (
        f"import sys, {module}; print(*(name for name in {processor._LOADED_BY} if name in "
        "sys.modules))"
    )
    assert output_of(sys.executable, "-c", code).split() == []


def test_a_command_of_a_bare_shell_runs_with_the_chosen_instructions(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(
        "from interp_core import processor\n"
        "from interp_core.console.options import Group\n"
        "import click\n"
        "processor._answer_mkl = lambda: print('answered')\n"
        "@click.group(cls=Group)\n"
        "def main(): pass\n"
        "@main.command()\n"
        "def look():\n"
        "    import torch\n"
        "    print(torch.backends.cpu.get_cpu_capability())\n"
        "main()\n"
    )
    # MKL asks on another maker's processor alone: that it would be answered is seen on any.
    assert output_of(sys.executable, str(script), "look").split() == ["answered", "AVX2"]


def test_libraries_that_were_loaded_before_are_said_to_differ() -> None:
    code = "import numpy; from interp_core import processor; print(processor.settle())"
    assert "numpy was loaded before" in output_of(sys.executable, "-c", code)


@pytest.mark.parametrize(
    ("system", "machine", "said"),
    [("darwin", "arm64", "not Linux on x86-64"), ("linux", "aarch64", "not Linux on x86-64")],
)
def test_another_system_is_told_that_its_numbers_will_differ(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, said: str
) -> None:
    monkeypatch.delenv(processor.SWITCH, raising=False)
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)

    line = processor.settle()
    assert line is not None
    assert said in line
    assert "last digits" in line
    assert processor.instructions() == "native"


def test_a_processor_without_avx2_is_told_that_its_numbers_will_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(processor.SWITCH, raising=False)
    flags = "processor\t: 0\nflags\t\t: fpu sse2 avx fma f16c\n"
    monkeypatch.setattr(Path, "read_text", lambda _: flags)
    assert "lacks AVX2" in str(processor.settle())


def test_instructions_are_part_of_what_a_training_resumes_by_and_of_its_recorded_settings() -> None:
    code = (
        "from interp_core import processor; processor.settle();"
        "from interp_core.training.checkpoints import fingerprint;"
        "from interp_core.training.tracking import provenance;"
        "print(fingerprint('a training', code=[]), provenance()['instructions'])"
    )
    pinned = output_of(sys.executable, "-c", code).split()
    native = output_of(sys.executable, "-c", code, INDUCTION_LAB_CPU="native").split()
    assert (pinned[1], native[1]) == ("avx2", "native")
    assert pinned[0] != native[0]


def test_any_other_program_can_be_run_with_the_chosen_instructions() -> None:
    said = output_of(sys.executable, "-m", "interp_core.processor", "printenv", "MKL_CBWR")
    assert said.strip() == "AVX2"
