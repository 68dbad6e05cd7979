"""Every figure stays on its page and is legible at half size, from a whole run's files alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drawn_figures import Drawn, assert_legible, figures_saved
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, load_json, save_arrays, save_json
from mamba_neurons import figures
from mamba_neurons.figures import Place

NAMES = ["tiny-mamba", "tiny-twin"]


def in_folders(files: Path, plots: Path) -> Place:
    """Where an experiment has its files."""
    return lambda kind, _: plots if kind == "figures" else files


@pytest.fixture
def folder(whole: tuple[Path, Path]) -> Path:
    """The files of every part."""
    return whole[0]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Drawn]:
    """Figures by the stem of their file."""
    return figures_saved(monkeypatch)


def test_every_text_is_on_the_page_legible_at_half_size_and_no_formula(
    folder: Path, drawn: dict[str, Drawn], tmp_path: Path
) -> None:
    written = [
        path
        for c in figures.COMMANDS
        for path in figures.draw(c, NAMES, in_folders(folder, tmp_path))
    ]
    assert {path.stem for path in written} == set(drawn)
    assert len(drawn) >= 6
    for name, seen in drawn.items():
        assert_legible(name, seen)


@pytest.mark.parametrize("estimated", [0, 1])
def test_estimates_are_drawn_where_they_stand_for_an_effect(
    folder: Path, drawn: dict[str, Drawn], tmp_path: Path, estimated: int
) -> None:
    report = load_json(folder / "causal_tiny-mamba.json")
    whole = report["whole_model"]
    whole["exact_channels"] = whole["channels"] - estimated
    save_json(tmp_path / "causal_tiny-mamba.json", report)
    save_arrays(tmp_path / "causal_tiny-mamba.npz", load_arrays(folder / "causal_tiny-mamba.npz"))

    figures.draw("causal", NAMES, in_folders(tmp_path, tmp_path))
    assert ("estimates_tiny-mamba" in drawn) is (estimated > 0)
    for name, seen in drawn.items():
        assert_legible(name, seen)


@pytest.mark.parametrize(("layers", "drawn_of"), [(2, set()), (3, {"inter_layer", "influence"})])
def test_what_goes_from_layer_to_layer_is_drawn_where_it_makes_a_curve_or_a_map(
    layers: int, drawn_of: set[str], drawn: dict[str, Drawn], tmp_path: Path
) -> None:
    for command, (arrays, report) in planted(layers).items():
        save_arrays(tmp_path / f"{command}_deep.npz", arrays)
        save_json(tmp_path / f"{command}_deep.json", report)
        figures.draw(command, ["deep"], in_folders(tmp_path, tmp_path))

    assert set(drawn) == {f"{name}_deep" for name in drawn_of}
    for name, seen in drawn.items():
        assert_legible(name, seen)


def planted(layers: int) -> dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Both commands' files of a model with so many layers."""
    texts = {"texts": 5, "repeated_rows": 2}
    kl = np.linspace(0.001, 0.01, 8 * layers).reshape(layers, 8)
    top = [{"dimension": 7, "kl_by_layer": kl[:, 7].tolist()}]
    by_layer = [{"layer": layer} for layer in range(layers)]

    moved = np.triu(np.full((layers, layers), 0.03), 1)
    moved[moved == 0] = np.nan
    pairs = [
        {"from": a, "to": b, "against_random": {"random": {"value": 0.02}}}
        for a in range(layers)
        for b in range(a + 1, layers)
    ]
    best = [{"total_kl": 0.02, "direct_kl": 0.004}, {"total_kl": 0.01, "direct_kl": 0.008}]

    return {
        "inter_layer": ({"kl": kl}, texts | {"layers": by_layer, "top": top}),
        "cross_layer": (
            {"total": moved, "direct": moved},
            texts
            | {
                "layers": [one | {"top": best} for one in by_layer],
                "influence": {"pairs": pairs},
                "null_units": 4,
            },
        ),
    }


def test_figures_need_no_model_library_and_name_a_missing_file(
    folder: Path, tmp_path: Path
) -> None:
    heavy = "'torch' in sys.modules or 'transformers' in sys.modules"
    code = f"import sys, mamba_neurons.figures; sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(InputError, match=r"delta_tiny-mamba\.npz is missing"):
        figures.draw("delta", NAMES, in_folders(tmp_path, tmp_path))
