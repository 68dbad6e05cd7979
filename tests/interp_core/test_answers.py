"""The numbers of all studies: in files, in DVC, and in the table beside the committed."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from interp_core import cli
from interp_core.console.answers import Answer, from_json, headline, of_studies, to_json
from interp_core.console.answers_table import committed, published, shown, table, verdict
from interp_core.files.artifacts import save_json
from interp_core.page.report import NAMED, OVER
from planted_answers import PLANTED, planted, save

ROOT = Path(__file__).parents[2]

ANSWER = Answer("gain", 0.5, 0.4, 0.6, 12, "texts", "nats")
HEADLINES = range(4, 7)  # a study: with more, five studies do not fit a screen
LONGEST = 42  # of STUDY.NAME, for `dvc metrics diff` to fit into 100 columns


def answers_of(study: str, metrics: Path) -> list[Answer]:
    return importlib.import_module(f"{study}.answers").answers(metrics)


def call(study: str, folder: Path) -> Result:
    program = importlib.import_module(f"{study}.cli").main
    return CliRunner().invoke(program, ["answers", "--out", str(folder)])


def numbers_in(content: Any) -> Iterator[float]:
    """Every number of a report, wherever it stands."""
    if isinstance(content, dict):
        content = list(content.values())

    if isinstance(content, list):
        for entry in content:
            yield from numbers_in(entry)
    elif isinstance(content, int | float):
        yield content


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The planted reports of all studies and their answers, in the working directory."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("profile: none\n")

    for study in PLANTED:
        save(tmp_path / "data" / study, planted(study))
        assert call(study, tmp_path / "data" / study).exit_code == 0

    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "user.name",
        "GIT_CONFIG_VALUE_0": "tester",
        "GIT_CONFIG_KEY_1": "user.email",
        "GIT_CONFIG_VALUE_1": "tester@example.org",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def commit(folder: Path) -> None:
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "Record the answers")


def compare(option: str = "--compare") -> list[str]:
    done = CliRunner().invoke(cli.main, ["answers", option])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


@pytest.mark.parametrize("study", PLANTED)
def test_every_number_is_one_of_the_reports(study: str, tmp_path: Path) -> None:
    metrics = save(tmp_path, planted(study))
    found = answers_of(study, metrics)

    files = [json.loads(file.read_text()) for file in metrics.rglob("*.json")]
    reported = {*numbers_in(files), 1}  # one training has no report that counts it

    if study == "eigen_phase":
        (free,) = (answer for answer in found if answer.name == "clamped_over_free_step")
        assert free.n == 5
        reported.add(0)  # none, where a ratio has no date in every training

    for answer in found:
        assert {answer.value, answer.low, answer.high, answer.n} <= {*reported, None}, answer
        assert (answer.low is None) == (answer.high is None)
        assert len(f"{study}.{answer.name}") <= LONGEST


@pytest.mark.parametrize("study", PLANTED)
def test_the_committed_answers_are_those_of_the_committed_reports(study: str) -> None:
    folder = ROOT / "data" / study
    recorded = json.loads((folder / "answers.json").read_text())
    values = json.loads((ROOT / "data" / "answers.json").read_text())[study]

    assert from_json(recorded) == answers_of(study, folder / "metrics")
    headlines = {name: one["value"] for name, one in recorded.items() if one.get("headline")}
    assert values == headlines
    assert len(headlines) in HEADLINES


@pytest.mark.parametrize("study", PLANTED)
def test_what_a_verdict_names_is_a_headline(study: str) -> None:
    named = NAMED.findall(importlib.import_module(f"{study}.page").WORDS.verdict)
    headlines = {one.name for one in of_studies(ROOT / "data")[study] if one.headline}

    assert named
    assert {name.removeprefix(OVER) for name, _ in named} <= headlines


def test_a_file_says_of_headlines_alone_that_they_are_and_an_older_one_says_it_of_none() -> None:
    answers = [headline(ANSWER), replace(ANSWER, name="loss")]
    content = to_json(answers)

    assert from_json(content) == answers
    assert [one.get("headline") for one in content.values()] == [True, None]
    # Which trainings are meant stands in made.json, once.
    assert to_json([replace(ANSWER, kind="taught to copy first")]) == to_json([ANSWER])


@pytest.mark.parametrize("study", PLANTED)
def test_a_report_that_is_missing_is_an_error_of_one_line(study: str, tmp_path: Path) -> None:
    metrics = save(tmp_path, planted(study))
    # A profile may continue no training inside a subspace.
    needed = [name for name in PLANTED[study] if "subspace" not in name]

    for name in needed:
        (metrics / name).rename(tmp_path / "away")
        result = call(study, tmp_path)
        (tmp_path / "away").rename(metrics / name)

        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert str((metrics / name).parent) in result.stderr
        assert "is missing: run the command that writes it first" in result.stderr


def test_a_study_that_has_reports_and_no_answers_is_named(project: Path) -> None:
    (project / "data" / "eigen_phase" / "answers.json").unlink()
    result = CliRunner().invoke(cli.main, ["answers"])

    assert result.exit_code == 2
    assert "eigen_phase/answers.json is missing" in result.stderr


def test_without_any_report_the_way_out_is_named(project: Path) -> None:
    (project / "data").rename(project / "elsewhere")
    result = CliRunner().invoke(cli.main, ["answers"])

    assert result.exit_code == 2
    way_out = "run the pipeline first (`dvc repro`)"
    assert result.stderr == f"error: no study has metrics in {project}/data: {way_out}\n"


@pytest.mark.parametrize("study", [*PLANTED, "interp_core"])
def test_answers_wait_for_no_large_library(study: str, project: Path) -> None:
    module = "interp_core.cli" if study == "interp_core" else f"{study}.cli"
    program = (
        f"import sys; from {module} import main; main(['answers'], standalone_mode=False);"
        "print({'torch', 'transformers', 'scipy', 'matplotlib', 'numba'} & sys.modules.keys())"
    )

    assert run(project, sys.executable, "-c", program).splitlines()[-1] == "set()"


def test_dvc_shows_the_answers_and_nothing_fails(project: Path) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    stage = {"cmd": "true", "metrics": stages["answers"]["metrics"]}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"answers": stage}}))
    assert CliRunner().invoke(cli.main, ["answers"]).exit_code == 0
    commit(project)
    run(project, "dvc", "init", "--quiet")

    told = run(project, "dvc", "metrics", "show")
    assert "failed" not in told
    assert "eigen_phase.transition_step" in told

    path = project / "data" / "answers.json"
    values = json.loads(path.read_text())
    for names in values.values():
        names |= {name: value - 1e-3 for name, value in names.items() if value is not None}
    path.write_text(json.dumps(values))

    marked = of_studies(project / "data")
    assert {study: [*found] for study, found in values.items()} == {
        study: [one.name for one in answers if one.headline] for study, answers in marked.items()
    }

    changes = run(project, "dvc", "metrics", "diff").splitlines()
    known = [value for names in values.values() for value in names.values() if value is not None]
    assert len(changes) == 1 + len(known)
    assert max(map(len, changes)) <= 100


@pytest.mark.parametrize(
    ("mine", "word"),
    [
        (ANSWER, "same"),
        (replace(ANSWER, value=0.55), "+0.05 inside"),
        (replace(ANSWER, value=0.4), "-0.1 inside"),
        (replace(ANSWER, value=0.3), "-0.2 outside"),
        (replace(ANSWER, value=0.5000000001), "+1e-10 inside"),
        (replace(ANSWER, value=None), "now none"),
        (replace(ANSWER, n=13), "interval moved"),
    ],
)
def test_a_verdict_says_by_how_much_and_on_which_side(mine: Answer, word: str) -> None:
    assert verdict(mine, ANSWER) == word


def test_without_a_committed_interval_the_difference_stands_alone() -> None:
    alone = replace(ANSWER, low=None, high=None)
    assert verdict(replace(alone, value=0.75), alone) == "+0.25"
    assert verdict(alone, replace(alone, value=None)) == "was none"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (replace(ANSWER, value=0.0034, low=-0.0002, high=0.0069), "0.0034 [-0.0002, 0.0069]"),
        (replace(ANSWER, value=412, low=376, high=421), "412 [376, 421]"),
        (replace(ANSWER, value=-1.3768, low=None, high=None), "-1.38"),
        (replace(ANSWER, value=288.491, low=None, high=None), "288"),
        (replace(ANSWER, value=1.0, low=1.0, high=1.0), "1.00 [1.00, 1.00]"),
        (replace(ANSWER, value=0.0, low=None, high=None), "0"),
        (replace(ANSWER, value=None, low=None, high=None), "none"),
    ],
)
def test_a_number_has_the_digits_that_its_interval_allows(answer: Answer, text: str) -> None:
    assert shown(answer, interval=True) == text


def test_right_after_a_commit_every_answer_is_the_same_and_headlines_are_listed(
    project: Path,
) -> None:
    commit(project)
    answers = [one for found in of_studies(project / "data").values() for one in found]
    n, headlines = len(answers), [one for one in answers if one.headline]

    lines = compare()
    listed = [line[2:].split("  ")[0] for line in lines[1:] if line[0] == " "]
    assert listed == [one.name.replace("_", " ") for one in headlines]

    others = f"{n - len(headlines)} others are the same: `induction-lab answers --all` lists them"
    assert lines[-2:] == [others, f"{n} answers: {n} the same"]
    assert max(map(len, lines)) <= 100

    everything = compare("--all")
    assert everything[-1] == f"{n} answers: {n} the same"
    assert len(everything) == 1 + len(PLANTED) + n + 1
    assert max(map(len, everything)) <= 100


def test_what_moved_has_a_line_whether_it_is_a_headline_or_not(project: Path) -> None:
    commit(project)
    path = project / "data" / "mamba_neurons" / "answers.json"
    content = json.loads(path.read_text())
    assert "headline" not in content["share_needed_alone"]
    content["share_needed_alone"]["n"] += 1
    del content["twin_needed_together"]
    path.write_text(json.dumps(content))

    verdicts = {line[2:25].strip(): line.split()[-1] for line in compare()}
    assert verdicts["share needed alone"] == "moved"
    assert verdicts["twin needed together"] == "gone"
    assert "kl of best set" not in verdicts  # the same, and no headline


def test_what_moved_stands_beside_the_committed_number(project: Path) -> None:
    commit(project)
    path = project / "data" / "mamba_neurons" / "answers.json"
    content = json.loads(path.read_text())
    content["kl_of_best_channel"]["value"] = 0.0281234567
    content["kl_of_best_set"]["value"] = 1.2
    content["another"] = content.pop("gini_difference")
    path.write_text(json.dumps(content))

    lines = compare()
    rows = {line[2:25].strip(): line for line in lines}
    assert rows["kl of best channel"].split()[-2:] == ["+0.00112", "inside"]
    assert "0.0270 [0.0230, 0.0320]" in rows["kl of best channel"]
    assert rows["kl of best set"].endswith("+0.38 outside")
    assert rows["another"].endswith("new")
    assert rows["gini difference"].endswith("gone")
    assert lines[-1].endswith("1 inside the committed interval, 1 outside, 2 without a verdict")
    assert max(map(len, lines)) <= 100


def test_where_nothing_is_committed_the_numbers_are_told_all_the_same(project: Path) -> None:
    lines = compare()
    assert lines[-1] == "nothing to compare with: git's last commit has no answers.json"
    assert any("288 [262, 318]" in line for line in lines)
    assert not any(line.startswith("  loss change inside") for line in lines)
    assert any(line.startswith("  loss change inside") for line in compare("--all"))


def test_without_git_nothing_is_committed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project))
    assert committed(project / "data", list(PLANTED)) == {}

    _, study, row, _ = table({"eigen_phase": [headline(ANSWER)]}, {})
    assert (study, row) == ("eigen_phase", "  gain  0.50 [0.40, 0.60]  12 texts")


def test_one_training_stands_beside_the_published_interval(project: Path) -> None:
    commit(project)
    over = {"centre_of_short": {**ANSWER.__dict__, "n": 5, "unit": "trainings"}}
    del over["centre_of_short"]["name"]
    folder = project / "published" / "pythia_topology"
    folder.mkdir(parents=True)
    (folder / "answers.json").write_text(json.dumps(over))

    lines = compare()
    at = next(k for k, line in enumerate(lines) if line.startswith("  centre of short"))
    mine, over, after = (line.split() for line in lines[at : at + 3])
    assert "0.410" in mine
    assert " ".join(over) == "published, over trainings 0.50 [0.40, 0.60] 5 trainings"
    columns = lines[0].index("committed"), lines[0].rindex("n")
    assert [lines[at + 1][column - 1 : column + 1] for column in columns] == [" 0", " 5"]
    assert "published" not in "".join(after)  # nothing is published of centre of tall
    assert sum("published" in line for line in lines) == 1
    assert lines[-1].endswith("the same")


def test_trainings_of_another_kind_say_what_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "pythia_topology"
    entry = {**ANSWER.__dict__, "unit": "trainings"}
    del entry["name"]
    save_json(folder / "answers.json", {"centre_of_short": entry})
    save_json(folder / "made.json", {"says": "taught to copy first"})

    over = published(tmp_path, ["pythia_topology"])
    (found,) = over["pythia_topology"]
    assert (found.unit, found.kind) == ("trainings", "taught to copy first")

    yours = {"pythia_topology": [headline(replace(ANSWER, name="centre_of_short"))]}
    said = table(yours, yours, over)[-2].split()
    assert " ".join(said) == "published, taught to copy first 0.50 [0.40, 0.60] 12 trainings"

    # A unit may have a comma of its own.
    save_json(folder / "answers.json", {"centre_of_short": entry | {"unit": "words, in pairs"}})
    save_json(folder / "made.json", {"says": ""})
    over = published(tmp_path, ["pythia_topology"])
    said = table(yours, yours, over)[-2].split()
    assert " ".join(said) == "published, over trainings 0.50 [0.40, 0.60] 12 words, in pairs"


def test_nothing_published_leaves_no_line(project: Path) -> None:
    assert published(project / "published", list(PLANTED)) == {}
    commit(project)
    assert "published" not in "".join(compare())
