"""`mamba-neurons page` as a person types it."""

import shlex
import shutil
from pathlib import Path

import numpy as np
from click.testing import CliRunner

import planted_mamba as planted
import small_project
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
    assert shlex.join(["mamba-neurons", *arguments]) in page.text
    assert [row[0] for row in rows] == [f"L{layer}C{c}" for layer, c in np.ndindex(kl.shape)]
    np.testing.assert_allclose([row[1] for row in rows], kl.ravel(), rtol=1e-3)


def test_a_mamba2s_page_has_of_every_channel_the_step_of_its_head(
    project: Path, tmp_path: Path
) -> None:
    tokenizer = small_project.corpus_tokenizer(project / "data" / "corpus")
    model = small_project.save_model(
        tmp_path / "heads", planted.random_mamba2(vocab=len(tokenizer)), tokenizer
    )
    asked = ["page", "--model", str(model), "--text-limit", "4", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, asked, catch_exceptions=False)

    assert done.exit_code == 0, done.output
    rows = Page.of((tmp_path / "out" / "page_heads.html").read_text()).view("channels")["rows"]
    steps = load_arrays(tmp_path / "out" / "delta_heads.npz")["mean_dt"]
    layers, heads = steps.shape
    width = len(rows) // steps.size

    assert (len(rows), width) == (layers * 32, 8)
    shown = np.array([row[4] for row in rows]).reshape(layers, heads, width)
    np.testing.assert_allclose(shown, np.broadcast_to(steps[..., None], shown.shape), rtol=1e-3)


def test_without_a_model_it_says_where_the_run_is(project: Path) -> None:
    done = CliRunner().invoke(main, ["page"])
    assert done.exit_code == 2
    assert done.stderr == (
        "error: name a Mamba of yours (--model M); `make report` has the page of the run\n"
    )
