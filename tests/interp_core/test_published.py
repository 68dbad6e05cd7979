"""Answers over trainings: Student's interval by hand, seeds where the profile says, refusals."""

import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scipy import stats

from interp_core.cli import main
from interp_core.console.answers import Answer, headline, over_trainings
from interp_core.errors import InputError
from interp_core.files.artifacts import load_json
from interp_core.files.params import profile_path, read_yaml
from interp_core.pipeline import published
from interp_core.pipeline.published import Published, Repeats, _answers_of, publish, with_seed

ROOT = Path(__file__).resolve().parents[2]
LONG = read_yaml(ROOT / "profiles" / "long.yaml")


def answer(value: float | None, *, name: str = "centre", says: str = "relative depth") -> Answer:
    return Answer(name, value, None, None, 192, "prompts", says)


def test_an_answer_over_trainings_has_students_interval_over_them() -> None:
    values = [0.41, 0.64, 0.63, 0.39]
    (found,) = over_trainings([[answer(value)] for value in values])

    error = statistics.stdev(values) / len(values) ** 0.5
    expected = stats.t.interval(0.95, len(values) - 1, loc=statistics.mean(values), scale=error)

    assert (found.low, found.high) == pytest.approx(expected)
    assert found.value == pytest.approx(statistics.mean(values))
    assert (found.n, found.unit) == (4, "trainings")


def test_one_training_has_no_interval() -> None:
    (found,) = over_trainings([[answer(0.4)]])
    assert (found.value, found.low, found.high, found.n) == (0.4, None, None, 1)


def test_a_training_without_the_number_is_said_and_not_counted_as_zero() -> None:
    (found,) = over_trainings([[answer(0.4)], [answer(None)], [answer(0.6)]])
    assert found.value == pytest.approx(0.5)
    assert found.n == 2
    assert found.says == "relative depth; 1 of 3 trainings have none"


def test_what_trainings_say_alike_is_said() -> None:
    trainings = [
        [answer(value, says=f"attention, family words, {head}")]
        for value, head in ((0.1, "L1H2"), (0.3, "L2H3"))
    ]
    (found,) = over_trainings(trainings)
    assert found.says == "attention, family words"


def test_the_level_of_one_trainings_interval_is_not_said_of_the_one_over_them() -> None:
    says = "accuracy without it, L1 at +1, interval at 99.6 %, for 12 cuts together"
    (found,) = over_trainings([[answer(value, says=says)] for value in (-0.9, -0.8)])
    assert found.says == "accuracy without it, L1 at +1"


@pytest.mark.parametrize("values", [(0.1, 0.3), (0.1, 0.1), (None, None)])
def test_a_headline_of_every_training_is_one_over_them(values: tuple[float | None, ...]) -> None:
    (found,) = over_trainings([[headline(answer(value))] for value in values])
    assert found.headline


def test_a_number_that_no_training_has_a_part_in_keeps_its_own_interval() -> None:
    ink = Answer("true_ink_read", 0.875, 0.71, 0.96, 32, "words", "share of true ink")
    (found,) = over_trainings([[ink]] * 3)
    assert (found.low, found.high, found.n, found.unit) == (0.71, 0.96, 32, "words")
    assert found.says == "share of true ink; the same in all 3 trainings"


def test_where_all_lack_it_there_is_none() -> None:
    (found,) = over_trainings([[answer(None)], [answer(None)]])
    assert found.value is None
    assert found.n == 0


def test_what_only_one_training_names_is_not_said_of_all() -> None:
    trainings = [[answer(0.1, says=f"nats, {best} ablated")] for best in ("L0C3", "L0C7")]
    (found,) = over_trainings(trainings)
    assert found.says == "nats"


def test_trainings_that_answer_different_questions_are_refused() -> None:
    with pytest.raises(InputError, match="different questions"):
        over_trainings([[answer(0.1)], [answer(0.1, name="peak")]])


@pytest.mark.parametrize("study", LONG["published"]["studies"])
def test_every_key_that_a_seed_replaces_holds_a_seed(study: str) -> None:
    repeats = Published.model_validate(LONG["published"]).studies[study]
    changed = with_seed(LONG, repeats.vary, 77)

    for key in repeats.vary:
        before, after = LONG, changed
        for part in key.split("."):
            before, after = before[part], after[part]
        assert (before, after) == (0, 77)
    assert with_seed(changed, repeats.vary, 0) == LONG


def test_a_key_that_the_profile_lacks_is_named() -> None:
    with pytest.raises(InputError, match=r"no key `reference_models\.sed`"):
        with_seed(LONG, ("reference_models.sed",), 1)


@pytest.mark.parametrize("study", LONG["published"]["studies"])
def test_the_stage_that_writes_a_studys_answers_is_found(study: str) -> None:
    stage, program = _answers_of(study, ROOT)
    assert read_yaml(ROOT / "dvc.yaml")["stages"][stage]["cmd"] == f"{program} answers"


def test_every_study_whose_verdict_is_over_trainings_is_published() -> None:
    pages = {file.parent.name: file.read_text() for file in (ROOT / "packages").glob("*/page.py")}
    published = {*LONG["published"]["studies"]}

    assert {study for study, text in pages.items() if "{published." in text} <= published
    assert published <= {file.parent.name for file in (ROOT / "packages").glob("*/cli.py")}
    assert {folder.name for folder in (ROOT / "published").glob("*/")} <= published


@pytest.mark.parametrize("study", [folder.name for folder in (ROOT / "published").glob("*/")])
def test_what_is_published_says_what_it_was_made_from(study: str) -> None:
    made = load_json(ROOT / "published" / study / "made.json")
    repeats = Published.model_validate(read_yaml(profile_path(made["profile"]))["published"])

    assert re.fullmatch("[0-9a-f]{40}", made["revision"])
    assert set(made["seeds"]) <= {*repeats.studies[study].seeds}
    assert made["says"] == repeats.studies[study].says

    answers = load_json(ROOT / "published" / study / "answers.json")
    if made["seeds"]:
        over = [one["n"] for one in answers.values() if one["unit"] == "trainings"]
        assert max(over) == len(made["seeds"])


def test_what_the_answers_were_made_from_lies_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies' runs and the study's program are left out: what `publish` does around them."""
    monkeypatch.setattr(published, "project_root", lambda: tmp_path)
    monkeypatch.setattr(published, "_answers_of", lambda study, root: ("last", "program"))
    monkeypatch.setattr(published, "_check_committed", lambda root: None)
    monkeypatch.setattr(published, "_revision", lambda folder: "a" * 40)
    monkeypatch.setattr(published, "_run_in_a_copy", lambda name, *_: tmp_path / name)
    called: list[list[str]] = []
    monkeypatch.setattr(published, "_run", lambda command, folder: called.append(command))

    out = publish("cursive_circuits", "long")

    repeats = Published.model_validate(LONG["published"]).studies["cursive_circuits"]
    assert load_json(out / "made.json") == {
        "profile": "long",
        "seeds": [*repeats.seeds],
        "replaced": [*repeats.vary],
        "says": "taught to copy first",
        "revision": "a" * 40,
    }
    assert [command.count("--trainings") for command in called] == [len(repeats.seeds)]


def test_files_that_a_run_of_all_trainings_keeps_are_published_beside_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "copy"
    repeats = Published.model_validate(LONG["published"]).studies["eigen_phase"]
    for kept in (published.ANSWERS, *repeats.keeps):
        (ran / "data" / "eigen_phase" / kept).parent.mkdir(parents=True, exist_ok=True)
        (ran / "data" / "eigen_phase" / kept).write_text(kept)

    monkeypatch.setattr(published, "project_root", lambda: tmp_path)
    monkeypatch.setattr(published, "_answers_of", lambda study, root: ("last", "program"))
    monkeypatch.setattr(published, "_check_committed", lambda root: None)
    monkeypatch.setattr(published, "_revision", lambda folder: "a" * 40)
    asked: list[list[str]] = []

    def run_in_a_copy(name: str, root: Path, content: dict[str, Any], stages: list[str]) -> Path:
        asked.append(stages)
        return ran

    monkeypatch.setattr(published, "_run_in_a_copy", run_in_a_copy)
    monkeypatch.setattr(published, "_writer_of", lambda path, root: f"writes {path}")

    out = publish("eigen_phase", "long")
    # A copy of a commit has the laptop's files: without their stages those would be published.
    assert asked == [["last", *(f"writes data/eigen_phase/{kept}" for kept in repeats.keeps)]]

    assert {file.name: file.read_text() for file in out.iterdir() if file.name != "made.json"} == {
        Path(kept).name: kept for kept in (published.ANSWERS, *repeats.keeps)
    }
    assert load_json(out / "made.json")["seeds"] == []


def test_every_file_that_a_profile_keeps_has_a_stage_that_writes_it() -> None:
    repeats = Published.model_validate(LONG["published"]).studies
    stages = {
        kept: published._writer_of(f"data/{study}/{kept}", ROOT)
        for study, one in repeats.items()
        for kept in one.keeps
    }
    assert stages["figures/lags_tiled.png"] == "eigen_figures"
    assert stages["metrics/transition/transition.json"] == "eigen_transition"

    with pytest.raises(InputError, match="no stage writes data/eigen_phase/notes"):
        published._writer_of("data/eigen_phase/notes.md", ROOT)


@pytest.mark.parametrize("kept", ["../../../thesis.json", "/etc/passwd", "metrics//a.json"])
def test_only_files_inside_a_studys_folder_are_kept(kept: str) -> None:
    with pytest.raises(ValueError, match="becomes a file's name"):
        Repeats(keeps=(kept,))


@pytest.mark.parametrize("keeps", [("a/made.json",), ("answers.json",), ("a/x.json", "b/x.json")])
def test_a_file_that_is_kept_replaces_no_other(keeps: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="twice"):
        Repeats(keeps=keeps)


def test_many_runs_keep_no_file_of_one() -> None:
    with pytest.raises(ValueError, match="its own files"):
        Repeats(seeds=(0, 1), vary=("reference_models.seed",), keeps=("a.json",))


def test_a_copy_that_moves_to_another_commit_keeps_what_its_runs_have_measured(
    tmp_path: Path,
) -> None:
    root, place = tmp_path / "project", tmp_path / "copy"

    def git(*words: str, at: Path = root) -> str:
        told = subprocess.run(["git", *words], cwd=at, capture_output=True, text=True, check=True)
        return told.stdout.strip()

    def commit(files: dict[str, str | None]) -> str:
        for name, text in files.items():
            if text is None:
                (root / name).unlink()
            else:
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_text(text)
        git("add", "--all")
        git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one more")
        return git("rev-parse", "HEAD")

    root.mkdir()
    git("init", "--quiet")
    commit({"code.py": "1", "old.py": "1", "data/a.json": "laptop's", "dvc.lock": "laptop's"})
    git("clone", "--quiet", "--shared", str(root), str(place))
    for name in ("data/a.json", "data/b.npz", "dvc.lock"):
        (place / name).write_text("its own")
    (place / "code.py").write_text("edited")

    moved = commit({"code.py": "2", "old.py": None, "new.py": "2", "data/a.json": "laptop's new"})
    published._move(place, moved)

    found = {file.name: file.read_text() for file in place.rglob("*.*") if file.is_file()}
    assert {found[name] for name in ("a.json", "b.npz", "dvc.lock")} == {"its own"}
    assert (found["code.py"], found["new.py"], "old.py" in found) == ("2", "2", False)
    assert git("rev-parse", "HEAD", at=place) == moved


def test_seeds_that_replace_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="belong together"):
        Repeats(seeds=(0, 1))


def test_a_study_that_is_not_repeated_is_refused() -> None:
    with pytest.raises(InputError, match="repeats no study eigen_face"):
        publish("eigen_face", "long")


def test_the_command_refuses_in_one_line_what_no_profile_repeats() -> None:
    done = CliRunner().invoke(main, ["publish", "eigen_face"])
    assert done.exit_code == 2
    assert done.output.startswith("error: profile long repeats no study eigen_face; known here: ")


def test_make_published_calls_a_command_that_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    called = set(re.findall(r"@induction-lab (\w[\w-]*)", makefile))
    assert called <= {*main.commands}
    assert "publish" in called
