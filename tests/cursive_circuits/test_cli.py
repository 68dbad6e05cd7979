"""The commands as a person types them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cursive_circuits.params import CursiveCircuits
from cursive_circuits.run_directory import open_run
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays
from interp_core.files.params import profile_path
from page_parts import Page
from small_study import call

COMMANDS = (
    "prepare",
    "train",
    "sample",
    "attention",
    "heads",
    "circuits",
    "composition",
    "ablate",
    "draw",
    "figures",
    "page",
    "run",
)


def refused(*arguments: str) -> str:
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    assert done.output.strip().count("\n") == 0, done.output
    return done.output


def test_help_needs_no_torch_and_no_profile() -> None:
    program = (
        "import sys; from cursive_circuits import cli; assert not {'torch', 'numpy', 'pydantic'} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    for command in COMMANDS:
        assert call(command, "--help").exit_code == 0


def test_a_bank_of_the_public_format_goes_the_whole_way(whole: Path) -> None:
    out = whole / "out"
    for command in ("sample", "attention"):
        assert (out / "metrics" / command / "handwriting.json").is_file()
    for name in ("handwriting", "control"):
        for command in ("train", "heads", "circuits", "composition", "ablate"):
            json.loads((out / "metrics" / command / f"{name}.json").read_text())
        assert "verdict" in json.loads((out / "metrics" / "ablate" / f"{name}.json").read_text())
    aligned = json.loads((out / "metrics" / "attention" / "handwriting.json").read_text())
    assert "error" not in aligned
    assert aligned["padding"]["value"] == 0.0
    families = json.loads((out / "metrics" / "heads" / "handwriting.json").read_text())["families"]
    assert len(families) == 5
    drawn = {path.name for path in (out / "figures").iterdir()}
    wanted = {
        "samples",
        "alignment",
        "excess",
        "scores",
        "gain",
        "qk",
        "ov",
        "circle",
        "kernel",
        "characters",
    }
    assert {f"{kind}_handwriting.png" for kind in wanted} <= drawn
    assert {
        "ablation.png",
        "paths.png",
        "offsets.png",
        "training.png",
        "redrawn_control.png",
    } <= drawn


def test_the_page_stands_alone_and_holds_the_attention(whole: Path) -> None:
    done = call("page", "--profile", str(whole / "mine.yaml"), "--out", str(whole / "out"))
    assert done.exit_code == 0, done.output
    page = Page.of((whole / "out" / "page.html").read_text())
    assert page.fetched == []
    content = page.view("strokes")
    arrays = load_arrays(whole / "out" / "scores" / "draw" / "handwriting.npz")
    query = 2 * (len(content["strokes"]) - 1) + 1
    shown = dict(map(tuple, content["self"][1][0][query]))
    pattern = arrays["self"][1, 0, arrays["position"][-1]]
    assert shown == {
        int(t): round(100 * float(pattern[t])) for t in np.flatnonzero(np.rint(100 * pattern))
    }


def test_a_study_starts_at_a_run_directory_and_figures_repeat_byte_for_byte(
    whole: Path, tmp_path: Path
) -> None:
    for kind in ("metrics", "scores"):  # of one command, so that its figures alone are drawn
        shutil.copytree(whole / "out" / kind / "ablate", tmp_path / kind / "ablate")
    done = call("figures", "--profile", str(whole / "mine.yaml"), "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert "ablation.png" in drawn
    for name, content in drawn.items():
        assert content == (whole / "out" / "figures" / name).read_bytes(), name

    trained = open_run(whole / "out" / "runs" / "handwriting")
    assert trained.writes
    with pytest.raises(InputError, match="not a run directory"):
        open_run(tmp_path)


def test_one_text_is_written_to_one_picture(whole: Path) -> None:
    place = ("--profile", str(whole / "mine.yaml"), "--out", str(whole / "out"))
    assert call("sample", *place, "--text", "anna").exit_code == 0
    assert (whole / "out" / "sample.png").stat().st_size > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "--text", "Añ"), "'A', 'ñ' in the alphabet"),
        (("sample", "--text", " "), "--text is empty"),
        (("sample", "--temperature", "0"), "--temperature: "),
        (("sample", "--text", "a" * 60), "longer than the 50"),
        (("draw", "--word", "zzzzzz"), "holds no word 'zzzzzz'"),
        (("heads", "--model", "nowhere.pt"), "learned positions"),
    ],
)
def test_bad_input_is_one_line_that_helps(
    arguments: tuple[str, ...], message: str, whole: Path
) -> None:
    place = ("--profile", str(whole / "mine.yaml"), "--out", str(whole / "out"))
    assert message in refused(*arguments, *place)


def test_commands_say_what_must_run_before_them(tmp_path: Path) -> None:
    assert "`cursive-circuits train` writes one" in refused(
        "heads", "--profile", "smoke", "--out", str(tmp_path)
    )
    assert "`cursive-circuits prepare` writes" in refused(
        "train", "--profile", "smoke", "--out", str(tmp_path), "--only", "handwriting"
    )


def test_a_word_longer_than_the_context_is_named(section: CursiveCircuits, tmp_path: Path) -> None:
    profile = yaml.safe_load(profile_path("smoke").read_text())
    profile["cursive_circuits"]["configurations"]["laptop"]["context"] = 60
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(profile))
    told = refused("prepare", "--profile", str(tmp_path / "short.yaml"), "--out", str(tmp_path))
    assert "more than the context of 60" in told


def test_a_training_that_is_repeated_gives_the_same_bytes(whole: Path) -> None:
    place = ("--profile", str(whole / "mine.yaml"), "--out", str(whole / "out"))
    weights = whole / "out" / "runs" / "control" / "model.safetensors"
    before = weights.read_bytes()
    assert call("train", *place, "--only", "control").exit_code == 0
    assert weights.read_bytes() == before
    assert torch.isfinite(open_run(weights.parent).model.embed.weight).all()
