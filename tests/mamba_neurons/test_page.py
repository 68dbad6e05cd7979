"""`mamba-neurons page` as a person types it."""

import shutil
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from interp_core.files.artifacts import load_arrays
from mamba_neurons.cli import main
from page_parts import Page


def test_the_page_has_every_channel_as_it_was_measured(
    whole: tuple[Path, Path], project: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    arguments = ["page", "--model", "tiny-mamba", "--out", str(out)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)

    assert done.exit_code == 0, done.output
    page = Page.of((out / "page_tiny-mamba.html").read_text())
    rows = page.view("channels")["rows"]
    kl = load_arrays(out / "causal_tiny-mamba.npz")["kl"]

    assert page.fetched == []
    assert [row[0] for row in rows] == [f"L{layer}C{c}" for layer, c in np.ndindex(kl.shape)]
    np.testing.assert_allclose([row[1] for row in rows], kl.ravel(), rtol=1e-3)


def test_without_a_model_it_says_where_the_run_is(project: Path) -> None:
    done = CliRunner().invoke(main, ["page"])
    assert done.exit_code == 2
    assert done.stderr == (
        "error: name a Mamba of yours (--model M); `make report` has the page of the run\n"
    )
