"""The notebooks in examples/: run when they were committed, and they run on others' models."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

import small_models as small

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))


def cells_of(name: str) -> list[dict[str, Any]]:
    return json.loads((EXAMPLES / f"{name}.ipynb").read_text())["cells"]


def run(name: str) -> dict[str, Any]:
    """The code, cell after cell, in one namespace; figures are drawn and closed."""
    found: dict[str, Any] = {}
    mpl.use("agg")
    for cell in cells_of(name):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), name, "exec"), found)
            for number in plt.get_fignums():
                plt.figure(number).canvas.draw()
            plt.close("all")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_was_run_to_its_end_and_names_no_machine(name: str) -> None:
    outputs = [out for cell in cells_of(name) for out in cell.get("outputs", [])]
    kinds = [out["output_type"] for out in outputs]
    assert "error" not in kinds
    assert "stream" in kinds
    assert "display_data" in kinds
    assert not any(out.get("name") == "stderr" for out in outputs)

    text = (EXAMPLES / f"{name}.ipynb").read_text()
    assert "/work/" not in text
    assert "/home/" not in text


@pytest.mark.slow
def test_the_curvature_notebook_agrees_with_the_whole_matrix(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run("curvature_of_my_loss")
    assert found["error"] < 1e-5
    assert found["found"].multiplicity_known
    assert "the whole matrix agrees" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi"])
def test_the_heads_notebook_runs_on_other_peoples_models(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.build(kind).save_pretrained(tmp_path / kind)
    monkeypatch.setenv("INDUCTION_MODEL", str(tmp_path / kind))
    assert run("heads_of_my_model")["excess"].shape == (small.LAYERS, small.HEADS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", small.MAMBAS)
def test_the_mamba_notebook_runs_on_every_kind_of_mamba(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.build(kind).save_pretrained(tmp_path / kind)
    monkeypatch.setenv("INDUCTION_MODEL", str(tmp_path / kind))
    found = run("mamba_hidden_attention")
    assert found["error"] < 1e-5
    assert len(found["calls"]) == small.LAYERS
