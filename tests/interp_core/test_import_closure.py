"""What an unfinished training's fingerprint covers: every file of ours that its numbers rest on."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from interp_core.pipeline.import_closure import WITHOUT_EFFECT, Sources, code_of

ROOT = Path(__file__).parents[2]

# Each training, with modules far down its imports that shape its bytes.
TRAININGS = {
    "interp_core.training.reference_models": {
        "interp_core.training.loop",
        "interp_core.measures.circuits",
    },
    "interp_core.training.mamba_models": {
        "interp_core.mamba.scan_kernels",
        "interp_core.stimuli.text",
    },
    "eigen_phase.train": {"eigen_phase.measure_spectrum", "interp_core.training.checkpoints"},
    "mamba_induction.train": {"interp_core.mamba.subject", "mamba_induction.measure_attention"},
    "cursive_circuits.train": {"cursive_circuits.model_blocks", "interp_core.training.loop"},
}


@pytest.mark.parametrize("training", TRAININGS)
def test_a_fingerprint_covers_what_a_training_rests_on_and_no_bar(training: str) -> None:
    sources = Sources.installed("interp_core", training.partition(".")[0])
    covered = set(code_of(training))

    for module in {training, *TRAININGS[training]}:
        assert sources.file_of(module) in covered, module
    assert not covered & {sources.file_of(module) for module in WITHOUT_EFFECT}


def test_an_installed_copy_covers_its_own_files_and_no_library(tmp_path: Path) -> None:
    for package in (ROOT / "shared" / "interp_core", ROOT / "packages" / "eigen_phase"):
        shutil.copytree(package, tmp_path / package.name)
    (tmp_path / "torch").mkdir()  # a library in the same folder, as in site-packages
    (tmp_path / "torch" / "nn.py").touch()

    program = (
        "from interp_core.pipeline.import_closure import code_of\n"
        "print(*code_of('eigen_phase.train'), sep='\\n')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    found = [Path(line).relative_to(tmp_path) for line in ran.stdout.split()]
    homes = (ROOT / "shared", ROOT / "packages")
    here = [
        file.relative_to(home)
        for file in code_of("eigen_phase.train")
        for home in homes
        if file.is_relative_to(home)
    ]
    assert found == here
