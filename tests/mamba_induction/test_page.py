"""`mamba-induction page` as a person types it."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from interp_core.files.artifacts import load_arrays, load_json
from mamba_project import Said, mamba_induction
from page_parts import Page

TEXT = "a command of a group, a command of a group"


@pytest.fixture
def made(finished: tuple[Path, Said], project: Path, tmp_path: Path) -> Path:
    """A copy of a finished folder, with a page of a text of the user's."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    said = mamba_induction("page", "--text", TEXT, "--out", out, "--twin", "twin")

    assert said.code == 0, said.err
    assert said.out.splitlines() == [
        f"{out / 'page_mamba.html'}: open it in a browser, it needs no network"
    ]  # its records were there: nothing is measured again
    return out


def test_the_page_shows_the_reads_that_were_measured(made: Path) -> None:
    page = Page.of((made / "page_mamba.html").read_text())
    view = page.view("offsets")
    scores = load_arrays(made / "scores_mamba.npz")
    analysis, causal = (load_json(made / f"{kind}_mamba.json") for kind in ("analysis", "causal"))

    assert page.fetched == []
    typed = ["mamba-induction", "page", "--text", TEXT, "--out", str(made), "--twin", "twin"]
    assert shlex.join(typed) in page.text

    for layer, shown in enumerate(view["layers"]):
        values = [row["value"] for row in shown["profile"]]
        np.testing.assert_allclose(values, scores["offset_profile"][layer], rtol=1e-3)

        read, n = analysis["scores"]["offset_profile"]["n"], causal["n"]
        assert f"{read} of what is read, {n} of the cuts" in view["says"]

        cut = {row["offset"]: row["value"] for row in shown["cuts"]}
        measured = causal["reads"].get(f"L{layer}", {})
        assert cut == {
            offset: pytest.approx(one["accuracy"]["value"], rel=1e-3)
            for offset, one in measured.items()
            if offset != "prefix"  # all of them at once
        }


def test_hidden_attention_of_the_text_is_shares(made: Path) -> None:
    hidden = Page.of((made / "page_mamba.html").read_text()).view("offsets")["hidden"]
    assert "".join(hidden["tokens"]).endswith(TEXT)
    assert len(hidden["pairs"]) > 0


def test_without_a_model_it_says_where_the_run_is() -> None:
    said = mamba_induction("page")
    assert said.code == 2
    assert said.err == (
        "error: name a Mamba of yours (--model M); `make report` has the page of the run\n"
    )
