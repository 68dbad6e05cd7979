"""The commands as a person types them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cursive_circuits import workflow
from cursive_circuits.data_bank import Item, load_bank, save_bank
from cursive_circuits.data_script import Script, write_bank
from cursive_circuits.figures import SEEN, draw_all
from cursive_circuits.params import CursiveCircuits
from cursive_circuits.run_directory import open_run
from cursive_circuits.study import bank, prepare
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays
from interp_core.files.params import profile_path, project_root
from page_parts import Page
from small_strokes import public_checkpoint
from small_study import call, write_profile

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
    "page",
    "figures",
    "run",
)


def refused(*arguments: str) -> str:
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    assert done.output.strip().count("\n") == 0, done.output
    return done.output


def test_help_needs_no_torch_and_no_profile() -> None:
    program = (
        "import sys; from cursive_circuits import cli;"
        " assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
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
    wanted = {"samples", "alignment", "gain", "redrawn", "composition"}
    assert {f"{kind}_handwriting.png" for kind in wanted} <= drawn

    for name in ("handwriting", "control"):
        heads = json.loads((out / "metrics" / "circuits" / f"{name}.json").read_text())["heads"]
        share = max(head["angular_share"] for head in heads.values())
        assert (f"qk_{name}.png" in drawn) is (f"ov_{name}.png" in drawn) is (share >= SEEN)
    assert {
        "ablation.png",
        "paths.png",
        "offsets.png",
        "excess.png",
        "scores.png",
        "ink.html",
        "redrawn_control.png",
    } <= drawn


@pytest.mark.parametrize("command", ["train", "run"])
def test_a_training_of_other_settings_stays(command: str, whole: Path, tmp_path: Path) -> None:
    profile = yaml.safe_load((whole / "mine.yaml").read_text())
    profile["cursive_circuits"]["handwriting"]["seed"] += 1
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(profile))
    before = {file: file.read_bytes() for file in (whole / "out").rglob("*") if file.is_file()}

    said = refused(command, "--profile", str(tmp_path / "other.yaml"), "--out", str(whole / "out"))
    assert "holds a training with other settings (training.seed 0 there, 1 asked for)" in said
    after = {file: file.read_bytes() for file in (whole / "out").rglob("*") if file.is_file()}
    assert after == before


def test_the_strongest_composition_of_all_is_the_one_that_is_patched(whole: Path) -> None:
    for name in ("handwriting", "control"):
        report = json.loads(
            (whole / "out" / "metrics" / "composition" / f"{name}.json").read_text()
        )
        firsts = [report[f"{kind}_k"][0] for kind in ("self", "cross")]
        strongest = max(firsts, key=lambda pair: pair["z"])
        patched = report["paths"]["k"]["by_weights"]
        assert {key: patched[key] for key in ("reader", "writer")} == {
            key: strongest[key] for key in ("reader", "writer")
        }


def test_the_page_stands_alone_and_holds_the_attention(whole: Path) -> None:
    page = (whole / "out" / "figures" / "ink.html").read_text()
    assert set(re.findall(r"https?://[^\"'`\s]+", page)) <= {"http://www.w3.org/2000/svg"}
    data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)
    views = [json.loads(one) for one in data]
    models = {view["title"].split(", ")[1]: view for view in views}
    assert list(models) == ["handwriting", "control"]
    assert models["control"]["letters"] == []
    content = models["handwriting"]
    arrays = load_arrays(whole / "out" / "scores" / "draw" / "handwriting.npz")
    query = 2 * (len(content["strokes"]) - 1) + 1
    shown = dict(map(tuple, content["self"][1][0][query]))
    pattern = arrays["self"][1, 0, arrays["position"][-1]]
    assert shown == {
        int(t): round(100 * float(pattern[t])) for t in np.flatnonzero(np.rint(100 * pattern))
    }


def test_the_page_has_ink_and_what_a_word_of_yours_reads(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    place = ("--profile", str(whole / "mine.yaml"), "--out", str(tmp_path / "out"))
    done = call("page", "--word", "an", *place)
    assert done.exit_code == 0, done.output

    page = Page.of((tmp_path / "out" / "page.html").read_text())
    strokes = page.view("strokes")
    assert page.fetched == []
    assert "".join(strokes["letters"]).split() == ["an", "an"]
    assert len(page.view("ink")["groups"]) > 0


def test_a_study_starts_at_a_run_directory_and_figures_repeat_byte_for_byte(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("metrics", "scores"):  # of one command, so that its figures alone are drawn
        shutil.copytree(whole / "out" / kind / "ablate", tmp_path / kind / "ablate")
    done = call("figures", "--profile", str(whole / "mine.yaml"), "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "figures").glob("*.png")}
    assert "ablation.png" in drawn
    for name, content in drawn.items():
        assert content == (whole / "out" / "figures" / name).read_bytes(), name

    # The pipeline's are on the page of the run.
    home = tmp_path / "data" / "cursive_circuits"
    for place in ("params.yaml", "profiles"):
        (tmp_path / place).symlink_to(project_root() / place)
    for kind in ("metrics", "scores"):
        shutil.copytree(tmp_path / kind, home / kind)
    monkeypatch.chdir(tmp_path)
    of_stage = {path.name for path in draw_all(home)}
    assert drawn.keys() - of_stage == {"redrawn_handwriting.png", "redrawn_control.png"}

    trained = open_run(whole / "out" / "runs" / "handwriting")
    assert trained.writes
    with pytest.raises(InputError, match="not a run directory"):
        open_run(tmp_path)


def test_one_text_is_written_to_one_picture(whole: Path) -> None:
    place = ("--profile", str(whole / "mine.yaml"), "--out", str(whole / "out"))
    assert call("sample", *place, "--text", "anna").exit_code == 0
    assert (whole / "out" / "sample.png").stat().st_size > 500
    assert call("sample", *place, "--text", "nana").exit_code == 0


@pytest.mark.parametrize(
    ("command", "name"),
    [(("sample", "--text", "an"), "sample.png"), (("page", "--word", "an"), "page.html")],
)
def test_a_picture_or_a_page_of_a_users_stays(
    command: tuple[str, ...], name: str, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("years of work")
    place = ("--profile", str(whole / "mine.yaml"), "--out", str(tmp_path))
    models = ("--model", str(whole / "out" / "runs" / "handwriting"))
    bank = ("--bank", str(whole / "out" / "bank" / "bank.zip"))
    done = call(*command, *place, *models, *bank)
    assert done.exit_code == 2, done.output
    assert f"error: {tmp_path / name} is there, and no record" in done.output
    assert (tmp_path / name).read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "--text", "Añ"), "'A', 'ñ' in the alphabet"),
        (("sample", "--text", " "), "--text is empty"),
        (("sample", "--temperature", "0"), "--temperature: "),
        (("sample", "--text", "a" * 60), "longer than the 50"),
        (("draw", "--word", "Añ"), "'A', 'ñ' in the alphabet"),
        (("draw", "--word", "an", "--tokens", "1,2"), "--tokens and --word: name one of them"),
        (("draw", "--text", "an"), "--text is what is read beside --tokens: name these too"),
        (("draw", "--tokens", "1,x"), "--tokens: ids must be whole numbers"),
        (
            ("draw", "--tokens", "138,138,1,80,80,1"),
            "--tokens: ids 80 and 1 at 4 are no direction (0-71) and radius",
        ),
        (("draw", "--tokens", "138,138,138,138"), "the row holds no stroke"),
        (("heads", "--bank", "none.zip"), "--bank: no file none.zip"),
        (("heads", "--model", "nowhere.pt"), "no checkpoint nowhere.pt"),
    ],
)
def test_bad_input_is_one_line_that_helps(
    arguments: tuple[str, ...], message: str, whole: Path
) -> None:
    place = ("--profile", str(whole / "mine.yaml"), "--out", str(whole / "out"))
    assert message in refused(*arguments, *place)


@pytest.fixture(scope="module")
def one_writer(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of one writer, each spelling once, with a word that is too long and one in another
    alphabet.
    """
    place = tmp_path_factory.mktemp("bank") / "ann.zip"
    of_spelling = {item.text: Item("Ann", item.text, item.points, None) for item in items}
    long = np.concatenate([item.points for item in items[:10]])
    save_bank(
        place,
        [*of_spelling.values(), Item("Ann", "long", long, None), Item("Ann", "Bo", long[:9], None)],
    )
    return place


def test_a_public_checkpoint_goes_the_whole_way_on_one_writers_bank(
    whole: Path, one_writer: Path, tmp_path: Path
) -> None:
    torch.save({"model_state_dict": public_checkpoint(context=300)}, tmp_path / "best.pt")
    place = ("--profile", str(whole / "mine.yaml"), "--out", str(tmp_path / "out"))
    place += ("--model", str(tmp_path / "best.pt"), "--bank", str(one_writer))
    first = call("sample", *place)
    assert "1 of 26 words are left out, twice their tokens are beyond the context" in first.output
    assert (
        "1 of 26 words are left out for characters outside the alphabet ('B' in 1)" in first.output
    )
    assert "the bank has one writer" in first.output
    for command in ("attention", "heads", "circuits", "composition", "ablate", "draw", "figures"):
        done = call(command, *place)
        assert done.exit_code == 0, done.output
        assert "left out" not in done.output  # taken once

    report = json.loads((tmp_path / "out" / "metrics" / "heads" / "best.json").read_text())
    assert "other_writer" not in report["families"]
    assert len(report["families"]) == 4
    drawn = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"samples_best.png", "excess.png", "ink.html", "ablation.png"} <= drawn
    arrays = load_arrays(tmp_path / "out" / "scores" / "draw" / "best.npz")
    assert arrays["position"][0] == 1  # no WORD WORD before the first word


@pytest.mark.parametrize(
    ("arguments", "letters", "strokes", "recurs"),
    [
        (("--word", "zzq"), "zzq zzq", 2, True),
        (("--word", "an", "--word", "zo", "--word", "an"), "an zo an", 3, True),
        (("--tokens", "138,138,3,80,9,81,138,138,5,82", "--text", "an"), "an", 2, False),
        (("--tokens", "3,80,9,81"), "", 1, False),
    ],
)
def test_any_word_and_any_row_can_be_drawn(
    arguments: tuple[str, ...],
    letters: str,
    strokes: int,
    recurs: bool,
    whole: Path,
    tmp_path: Path,
) -> None:
    place = (
        "--profile",
        str(whole / "mine.yaml"),
        "--model",
        str(whole / "out" / "runs" / "handwriting"),
    )
    place += ("--bank", str(whole / "mine.zip"), "--out", str(tmp_path))
    done = call("draw", *place, *arguments)
    assert done.exit_code == 0, done.output
    arrays = load_arrays(tmp_path / "scores" / "draw" / "handwriting.npz")
    assert "".join(arrays["letters"]) == letters
    words = 1 + int((np.diff(arrays["position"]) > 2).sum())
    assert words == strokes
    assert (tmp_path / "figures" / "ink_handwriting.png").stat().st_size > 500
    page = tmp_path / "figures" / "ink.html"
    assert str(page) in done.output
    # A row in which nothing comes again has no copy, and no control.
    assert ("Nothing in this row comes again" in page.read_text()) is not recurs


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


@pytest.mark.slow
def test_the_papers_training_goes_the_whole_way_from_one_writers_bank(tmp_path: Path) -> None:
    """The public shape, vocabulary and alphabet, on words of 300 points; only steps and samples are
    few.
    """
    profile = yaml.safe_load(profile_path("paper").read_text())
    section = profile["cursive_circuits"]
    section |= {"device": "cpu", "processes": 1}
    for model in ("handwriting", "control"):
        section[model]["recipe"] |= {
            "steps": 4,
            "warmup": 1,
            "device": "cpu",
            "checkpoint_every": 2,
        }
    section["handwriting"] |= {"rows": 4}
    section["watched"] = {"rows": 4, "sample_every": 4}
    section["sampling"] |= {"words": 4, "samples": 1, "shown": 4, "longest": 40}
    section["stimuli"] |= {"prompts": 12}
    section["interventions"] |= {
        "prompts": 4,
        "draws": 20,
        "dose": [1],
        "dose_draws": 2,
        "path_prompts": 4,
    }
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(profile))

    script = section["bank"]["script"] | {
        "spellings": 60,
        "hands": 2,
        "copies": 1,
        "letters": [3, 6],
    }
    words = [
        Item("Ann", item.text, dense(item.points, 300), None)
        for item in write_bank(Script.model_validate(script))
    ]
    save_bank(tmp_path / "ann.zip", words)

    place = ("--profile", str(tmp_path / "paper.yaml"), "--out", str(tmp_path / "out"))
    done = call("run", *place, "--bank", str(tmp_path / "ann.zip"))
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "metrics" / "prepare" / "bank.json").read_text())
    assert report["writers"] == 1
    assert report["taken"]["read"] == 60
    assert 100 < report["tokens_a_word"] < 300  # of 600 and more before points were left out
    trained = open_run(tmp_path / "out" / "runs" / "handwriting")
    assert (trained.model.shape.positions, trained.tokens.size) == ("learned", 525)
    assert trained.alphabet == section["bank"]["alphabet"]
    drawn = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {
        "samples_handwriting.png",
        "excess.png",
        "ablation.png",
        "paths.png",
        "ink.html",
    } <= drawn


def dense(points: np.ndarray, n: int) -> np.ndarray:
    """About n points along the same strokes, as a mouse records them."""
    found = []
    for stroke in np.split(points, np.flatnonzero(points[1:, 2] == 0) + 1):
        count = max(3, n * len(stroke) // len(points))
        at = np.linspace(0, len(stroke) - 1, count)
        plane = [np.interp(at, np.arange(len(stroke)), stroke[:, axis]) for axis in (0, 1)]
        found.append(np.column_stack([*plane, np.arange(count) > 0]))
    return np.concatenate(found)


def test_a_word_of_ones_own_is_an_experiment_and_leaves_the_pipelines_files() -> None:
    run = prepare(None, None, asks=True)
    assert not run.is_stage
    assert run.folder == run.place("scores", "draw").parents[1] != run.home
    assert prepare(None, None).is_stage


def test_two_banks_never_share_a_folder_and_a_bank_is_no_model(
    items: list[Item], tmp_path: Path
) -> None:
    runs = []
    for name in ("ann", "bob"):
        save_bank(tmp_path / f"{name}.zip", items[:2])
        runs.append(prepare(None, None, bank_file=tmp_path / f"{name}.zip"))
    folders = {run.folder for run in (*runs, prepare("laptop", None))}
    assert len(folders) == 3
    assert not any(run.models or run.is_stage for run in runs)


def test_the_words_of_a_bank_are_taken_once_and_again_of_another(
    items: list[Item], tmp_path: Path
) -> None:
    profile = str(write_profile(tmp_path / "mine.yaml", None))
    out = tmp_path / "out"
    for name, some in (("ann", items[:4]), ("bob", items[4:9])):
        save_bank(tmp_path / f"{name}.zip", some)

    def written(name: str) -> tuple[list[str], int]:
        run = prepare(profile, out, bank_file=tmp_path / f"{name}.zip")
        workflow.ensure_bank(run)
        taken = load_bank(bank(run), alphabet=run.params.bank.alphabet)
        return [item.text for item in taken], bank(run).stat().st_mtime_ns

    ann = written("ann")
    assert ann[0] == [item.text for item in items[:4]]
    assert written("ann") == ann

    assert written("bob")[0] == [item.text for item in items[4:9]]

    # What was taken and then changed is not what the record says.
    save_bank(out / "bank" / "bank.zip", items[:1])
    assert written("bob")[0] == [item.text for item in items[4:9]]


def test_the_heads_of_one_model_never_rank_those_of_another(whole: Path, tmp_path: Path) -> None:
    trained = whole / "out" / "runs" / "handwriting"
    other = shutil.copytree(trained, tmp_path / "other" / "handwriting")
    place = ("--profile", str(whole / "mine.yaml"), "--out", str(tmp_path / "o"))
    shutil.copytree(whole / "out" / "bank", tmp_path / "o" / "bank")

    assert call("heads", *place, "--model", str(trained)).exit_code == 0
    told = refused("ablate", *place, "--model", str(other))
    assert "has the same name handwriting: name another folder (--out)" in told
