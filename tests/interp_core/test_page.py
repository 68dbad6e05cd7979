"""Pages: names are text and never code, nothing is fetched, what is shown was measured."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import known_circuits as known
from cursive_circuits import figures_page
from drawn_figures import committed_figures
from interp_core.console.answers import Answer, of_studies
from interp_core.errors import InputError
from interp_core.files.params import project_root
from interp_core.loading import transformer_of
from interp_core.models.subject import Transformer
from interp_core.page import document, explore, views
from interp_core.page.packed import numbers, shares
from interp_core.page.report import LARGEST, MOST_WORDS, _row, build, figures_of, verdict
from interp_core.page.study_page import Part
from interp_core.page.texts import Shown, copy_operations, first_prompt, without_antecedents
from interp_core.page.watch import all_heads, attention, mean_vectors, predicted
from interp_core.stimuli.prompts import Vocabulary, repeated_tokens
from page_parts import HOSTILE, Page, hostile_live_page, hostile_page


@pytest.mark.parametrize("page", [hostile_page, hostile_live_page])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_wherever_it_comes_from(name: str, page: Callable[[str], str]) -> None:
    honest, hostile = Page.of(page("honest")), Page.of(page(name))

    assert hostile.scripts == honest.scripts
    assert hostile.handlers == []
    assert hostile.fetched == []
    assert [view["title"] for view in hostile.data.values()] == [name] * len(honest.data)
    assert name in hostile.text


@given(st.text(max_size=40))
def test_any_name_comes_back_as_it_was_given(name: str) -> None:
    page = Page.of(hostile_page(name))

    assert page.view("heads")["model"] == name
    assert len(page.scripts) == 1


def test_only_the_script_that_is_built_in_may_run() -> None:
    import base64
    import hashlib

    content = hostile_page("honest")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', content)
    (script,) = Page.of(content).scripts

    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = policy[1].replace("&#39;", "'")
    assert f"script-src 'sha256-{digest}'" in allowed
    assert "default-src 'none'" in allowed
    assert "connect-src 'none'" in allowed


@pytest.mark.parametrize("scripts", [document.SCRIPTS, explore.SCRIPTS, figures_page.SCRIPTS])
def test_a_page_has_every_script_that_its_scripts_use(scripts: tuple[str, ...]) -> None:
    folder = Path(document.__file__).parent / "script"
    texts = [(folder / f"{name}.js").read_text() for name in scripts]
    made = {name for text in texts for name in re.findall(r"^lab\.(\w+) = ", text, re.MULTILINE)}
    made |= set(re.findall(r"^const lab = { (\w+):", texts[0], re.MULTILINE))
    used = {name for text in texts for name in re.findall(r"\blab\.(\w+)", text)}

    assert used
    assert used <= made


def test_bytes_hold_shares_to_one_in_510() -> None:
    import base64

    values = np.random.default_rng(0).random((3, 4, 5))
    packed = shares(values)
    back = (
        np.frombuffer(base64.b64decode(packed["bytes"]), dtype=np.uint8).reshape(packed["shape"])
        / 255
    )

    assert np.abs(back - values).max() <= 1 / 510 + 1e-12


def test_numbers_keep_four_digits_and_have_none_where_nothing_was_measured() -> None:
    assert numbers([[1.23456, float("nan")], [np.float32(2), 7]]) == [[1.234, None], [2.0, 7]]


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 3))
def test_a_number_that_is_rounded_again_is_as_if_rounded_once(value: float, digits: int) -> None:
    assert f"{numbers(value):.{digits}g}" == f"{value:.{digits}g}"


def test_an_event_has_the_whole_step_that_is_nearest() -> None:
    shown = views.clock("t", [0.0, 300.0], [], {}, says="", events={"onset": 290.457, "end": 299.6})
    assert [event["step"] for event in shown["events"]] == [290, 300]


def test_the_induction_head_is_what_copying_needs_and_a_random_head_is_not(
    planted: Transformer,
) -> None:
    prompts = repeated_tokens(
        Vocabulary.of(planted.vocab_size, bos=planted.bos, pad=planted.bos), period=6, n_prompts=1,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    text = first_prompt(prompts, "planted")
    layer, head = known.INDUCTION_HEAD
    control = [(layer, other) for other in range(planted.n_heads) if other != head][:1]

    means = mean_vectors(planted, np.stack([text.ids, text.control]))
    found = predicted(planted, text.ids, [[], [(layer, head)], control], means)
    copied = found.loss[:, text.pairs.query].mean(axis=1)

    assert copied[0] < 0.1
    assert copied[1] > copied[0] + 1
    assert copied[2] < copied[0] + 0.1


def test_sets_in_one_batch_are_as_each_alone(planted: Transformer) -> None:
    text = shown_twice(planted)
    means = mean_vectors(planted, np.stack([text.ids, text.control]))
    sets = [[], [(0, 0)], [(1, 0)], [(0, 0), (1, 0)]]

    together = predicted(planted, text.ids, sets, means)
    alone = [predicted(planted, text.ids, [one], means).loss[0] for one in sets]

    np.testing.assert_allclose(together.loss, np.stack(alone), atol=1e-5)


def test_the_pattern_on_the_page_looks_where_an_induction_head_looks(planted: Transformer) -> None:
    text = shown_twice(planted)
    layer, head = known.INDUCTION_HEAD
    clean, control = attention(planted, np.stack([text.ids, text.control]))
    at = text.pairs.query, text.pairs.induction_key

    assert clean[layer, head][at].min() > 0.9
    assert control[layer, head][at].max() < 0.5


def test_a_control_copies_nothing_and_differs_only_where_it_was_copied_from(
    planted: Transformer,
) -> None:
    row = np.array([0, 5, 6, 7, 5, 6, 8, 5, 6])
    pairs = copy_operations(row)
    control = without_antecedents(planted, row, pairs, seed=0)

    assert len(copy_operations(control)) == 0
    assert set(np.flatnonzero(control != row)) == set(pairs.earlier)


def test_a_row_that_nothing_begins_copies_from_its_first_token_on() -> None:
    begun = copy_operations(np.array([0, 5, 6, 7, 5, 6, 7]))
    plain = copy_operations(np.array([5, 6, 7, 5, 6, 7]), first=0)

    np.testing.assert_array_equal(plain.query, begun.query - 1)
    np.testing.assert_array_equal(plain.earlier, begun.earlier - 1)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_random_sets_are_distinct_and_have_none_of_the_best(planted: Transformer, k: int) -> None:
    every = all_heads(planted)
    rank = np.zeros((planted.n_layers, planted.n_heads))
    rank[known.INDUCTION_HEAD] = 1
    best = sorted(every, key=lambda head: -rank[head])[:k]

    score = views.score("score", "what it is", rank, rank - 0.1, rank + 0.1, colour="induction")
    view = views.heads(planted, [score], [shown_twice(planted)], n="n", found=[], seed=0)
    without = view["texts"][0]["without"]
    control = without["random"][without["sizes"].index(k)]

    assert without["ranked"][:k] == [str(head) for head in best]
    assert control["count"] <= math.comb(len(every) - k, k)
    assert len(set(control["first"])) == (k if control["count"] else 0)
    assert not set(control["first"]) & {str(head) for head in best}
    assert len(without["loss"]) == 1 + len(every) + len(without["sizes"]) + sum(
        one["count"] for one in without["random"]
    )


def shown_twice(subject: Transformer) -> Shown:
    row = np.array([subject.bos, 5, 6, 7, 8, 5, 6, 7, 8])
    pairs = copy_operations(row)
    return Shown("twice", row, without_antecedents(subject, row, pairs, seed=0), pairs)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_view_is_json_and_small(layers: int) -> None:
    subject = transformer_of(known.induction_model(), name="planted")
    rank = np.zeros((subject.n_layers, subject.n_heads))
    score = views.score("score", "what it is", rank, rank - 0.1, rank + 0.1, colour="induction")
    view = views.heads(subject, [score], [shown_twice(subject)] * layers, n="n", found=[], seed=0)

    assert json.loads(json.dumps(view, allow_nan=False))["texts"][0]["pairs"]


def test_a_map_needs_no_model_and_attention_no_predictions() -> None:
    subject = transformer_of(known.induction_model(), name="planted")
    rank = np.zeros((subject.n_layers, subject.n_heads))
    scores = [views.score("score", "what it is", rank, colour="induction")]
    plain = views.head_map(subject.name, scores, n="n", found=["L1H0"])
    text = shown_twice(subject)
    watched = views.heads(subject, scores, [text], n="n", found=["L1H0"], seed=0, predicts=False)

    assert json.dumps(watched, allow_nan=False)
    assert {**watched, "texts": []} == plain
    assert watched["texts"][0]["without"] is None
    assert watched["texts"][0]["attention"]["shape"][:3] == [2, *rank.shape]


def test_only_the_page_of_strokes_is_built_without_the_style_of_paper() -> None:
    paper = (Path(document.__file__).parent / "style" / "paper.css").read_text()

    assert paper in hostile_page("any")
    assert paper in hostile_live_page("any")
    # That page is a result of the pipeline: its bytes follow page.css alone.
    assert paper not in document._style(figures_page.SCRIPTS)


# What a verdict may say.

ANSWERS = {
    "size": Answer("size", -0.0719837, -0.0814, -0.0619, 192, "prompts", "a difference"),
    "count": Answer("count", 409, None, None, 28, "texts", "channels"),
    "published.size": Answer("size", -0.2, -0.5, 0.1, 3, "trainings", "a difference"),
}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("It is {size}, of {count}.", "It is -0.072, of 409."),
        ("In size {size:size}.", "In size 0.072."),
        ("It is {size:interval}.", "It is -0.072 [-0.081, -0.062]."),
        ("Over trainings {published.size:interval}.", "Over trainings -0.20 [-0.50, 0.10]."),
    ],
)
def test_a_verdict_has_the_numbers_of_the_answers(template: str, said: str) -> None:
    assert verdict(template, ANSWERS, where="here") == said


@pytest.mark.parametrize(
    ("template", "message"),
    [("{gone}", "gone, which is none"), ("word " * (MOST_WORDS + 1), f"{MOST_WORDS + 1} words")],
)
def test_a_verdict_that_cannot_be_said_is_an_error(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        verdict(template, ANSWERS, where="here")


@pytest.mark.parametrize(("kind", "said"), [("", ""), ("taught first", ", taught first")])
def test_answers_over_trainings_say_which_trainings_these_are(kind: str, said: str) -> None:
    over = replace(ANSWERS["published.size"], kind=kind)
    row = _row("size", ANSWERS | {"published.size": over})
    assert row["over"] == f"-0.20 [-0.50, 0.10], 3 trainings{said}"


# The committed run.


@pytest.fixture(scope="module")
def words() -> dict[str, Part]:
    """What a clone shows: views need a run's arrays and models, and are used in a browser."""
    studies = of_studies(project_root() / "data")
    return {study: Part(import_module(f"{study}.page").WORDS) for study in studies}


@pytest.fixture(scope="module")
def report(words: dict[str, Part], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(project_root(), tmp_path_factory.mktemp("report"), words)


def test_the_report_is_small_and_fetches_nothing(report: Path) -> None:
    page = Page.of(report.read_text())
    files = [file for file in report.parent.rglob("*") if file.is_file()]

    assert sum(file.stat().st_size for file in files) < LARGEST
    assert page.fetched == []
    assert not re.search(r"url\(|@import", "".join(page.styles))


def test_only_an_older_report_is_replaced(words: dict[str, Part], tmp_path: Path) -> None:
    mine = tmp_path / "site"
    mine.mkdir()
    (mine / "index.html").write_text("mine")

    with pytest.raises(InputError, match=r"holds index\.html and no files\.json"):
        build(project_root(), mine, {})
    assert (mine / "index.html").read_text() == "mine"

    # What an older report has and a newer one has not is gone.
    one = {"mamba_neurons": words["mamba_neurons"]}
    page = build(project_root(), tmp_path / "report", one)
    build(project_root(), tmp_path / "report", {})
    assert not (page.parent / "figures").exists()


def test_every_committed_figure_is_on_the_report(report: Path) -> None:
    root = project_root()
    kept = committed_figures(root)
    studies = {path.relative_to(root).parts[1] for path in kept}
    named = {study: figures_of(root, study) for study in studies}

    assert {path for found in named.values() for path in found} == kept
    shown = {
        str(file.relative_to(report.parent / "figures"))
        for file in (report.parent / "figures").rglob("*.png")
    }
    assert shown == {f"{study}/{name}" for study in studies for name in named[study].values()}


def test_every_answer_is_on_the_report(report: Path) -> None:
    text = Page.of(report.read_text()).text

    for study, answers in of_studies(project_root() / "data").items():
        assert study in text
        for answer in answers:
            assert answer.name.replace("_", " ") in text, answer.name


def test_the_first_page_has_the_questions_and_verdicts_of_the_report(report: Path) -> None:
    text = Page.of(report.read_text()).text
    readme = (project_root() / "README.md").read_text()
    rows = re.findall(r"^\| \[(\w+)\]\(packages/\1/README\.md\) \| (.+) \| (.+) \|$", readme, re.M)

    assert {study for study, _, _ in rows} == set(of_studies(project_root() / "data"))

    for study, question, said in rows:
        assert question in text, study
        assert said in text, study
        assert len(said.split()) <= MOST_WORDS, study


def test_the_same_run_is_the_same_page(words: dict[str, Part], tmp_path: Path) -> None:
    """Of the study with the fewest figures: they take most of the time."""
    one = {"mamba_neurons": words["mamba_neurons"]}
    first, again = (build(project_root(), tmp_path / name, one) for name in ("first", "again"))

    assert again.read_bytes() == first.read_bytes()

    for figure in (tmp_path / "first").rglob("*.png"):
        same = tmp_path / "again" / figure.relative_to(tmp_path / "first")
        assert same.read_bytes() == figure.read_bytes(), figure.name
