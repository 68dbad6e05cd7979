"""`induct page` and `induct explore` as a person types them."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

import known_circuits as known
from interp_core.files.params import project_root
from page_parts import Page
from pythia_topology.page import of_the_run
from pythia_topology.pretrained import each
from small_project import induct

TEXT = "w5 w6 w7 w8 w9 w5 w6 w7 w8"


@pytest.fixture(scope="module")
def made(planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the hand-built circuit, on a text of the user's."""
    out = tmp_path_factory.mktemp("mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(planted_folder)
        said = induct("page", "--model", "induction", "--text", TEXT, "--out", str(out))
    assert said.code == 0, said.err
    return out


def test_the_page_is_one_small_file_that_fetches_nothing(made: Path) -> None:
    (file,) = made.glob("*.html")
    page = Page.of(file.read_text())

    assert page.fetched == []
    assert file.stat().st_size < 2_000_000


def test_the_head_map_names_the_induction_head_with_its_interval(made: Path) -> None:
    view = Page.of((made / "page_induction.html").read_text()).view("heads")
    layer, head = known.INDUCTION_HEAD
    score = view["scores"][0]

    assert view["found"] == [f"L{layer}H{head}"]
    assert score["value"][layer][head] > 0.9
    assert score["low"][layer][head] <= score["value"][layer][head] <= score["high"][layer][head]


def test_the_page_says_the_numbers_of_the_profile(made: Path) -> None:
    profile = json.loads((made / "profile_induction.json").read_text())
    text = Page.of((made / "page_induction.html").read_text()).text

    assert profile["verdict"] in text
    typed = ["induct", "page", "--model", "induction", "--text", TEXT, "--out", str(made)]
    assert shlex.join(typed) in text
    assert profile["model_hash"] in text


def test_without_the_induction_head_the_text_is_not_copied(made: Path) -> None:
    view = Page.of((made / "page_induction.html").read_text()).view("heads")
    (text,) = view["texts"]
    layer, head = known.INDUCTION_HEAD
    copied = [query for query, _ in text["pairs"]]
    loss = [[row[at] for at in copied] for row in text["without"]["loss"]]
    place = 1 + layer * view["heads"] + head

    assert max(loss[0]) < 0.1
    assert min(loss[place]) > 1
    assert text["tokens"][1:] == TEXT.split()


def test_a_text_that_repeats_nothing_is_shown_twice(planted_project: Path, tmp_path: Path) -> None:
    said = induct("page", "--model", "induction", "--text", "w5 w6 w7", "--out", str(tmp_path))
    assert said.code == 0, said.err
    (text,) = Page.of((tmp_path / "page_induction.html").read_text()).view("heads")["texts"]

    assert text["tokens"][1:] == ["w5", "w6", "w7"] * 2
    assert "shown twice" in text["title"]


def test_a_model_that_never_saw_a_first_token_is_shown_without_one(
    planted_project: Path, tmp_path: Path
) -> None:
    said = induct(
        *("page", "--model", "induction", "--text", TEXT), "--bos", "none", "--out", str(tmp_path)
    )
    assert said.code == 0, said.err
    (text,) = Page.of((tmp_path / "page_induction.html").read_text()).view("heads")["texts"]

    assert text["tokens"] == TEXT.split()
    assert text["pairs"] == [[5, 1], [6, 2], [7, 3]]


def test_a_model_without_a_tokenizer_has_a_page_and_is_told_what_is_left_out(
    planted_project: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(planted_project / "models" / "induction", bare)
    for file in bare.glob("*token*"):
        file.unlink()

    said = induct("page", "--model", str(bare), "--out", str(tmp_path / "out"))
    asked = induct("profile", "--model", str(bare), "--task-types", "natural_repeats",
                   "--out", str(tmp_path / "other"))  # fmt: skip
    profile = json.loads((tmp_path / "out" / "profile_bare.json").read_text())

    assert said.code == 0, said.err
    assert "note: natural_repeats is left out: natural_repeats needs real text" in said.err
    assert list(profile["left_out"]) == ["natural_repeats"]
    assert {*profile["behaviour"]} == {"repeated_tokens", "spaced_pairs"}
    assert (tmp_path / "out" / "page_bare.html").is_file()
    assert asked.code == 2
    assert "--task-types can leave natural_repeats out" in asked.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("page", "--text", TEXT), "name a model of yours"),
        (("page", "--model", "induction", "--text", ""), "--text is empty"),
        (("page", "--model", "induction", "--text", " ".join(["w1", "w2"] * 80)), "shorten it"),
        (("explore", "--model", "nowhere"), "unknown model nowhere"),
        (("explore", "--model", "nowhere", "--bos", "none"), "unknown model nowhere"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    planted_project: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    place = ("--out", str(tmp_path)) if "--model" in arguments and arguments[0] == "page" else ()
    said = induct(*arguments, *place)

    assert said.code == 2, said.err
    assert message in said.err
    assert said.err.strip().splitlines()[-1].startswith("error: ")


def test_the_page_of_the_run_says_of_a_pretrained_model_what_its_stages_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From committed files alone: neither arrays nor weights are in a clone."""
    for name in ("params.yaml", "profiles", "data"):
        source = project_root() / name
        ignored = shutil.ignore_patterns("scores", "*.npz", "*.safetensors", "*.png", "corpus")
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(source, tmp_path / name)
    monkeypatch.chdir(tmp_path)

    (own,) = each()
    metrics = tmp_path / "data" / "pythia_topology" / "pretrained" / "metrics"
    found = {
        command: json.loads(file.read_text())
        for command in ("profile", "nulls", "lagbuckets", "causal", "composition")
        for file in (metrics / command).glob("*.json")
    }
    cards = of_the_run().cards
    (card,) = [one for one in cards if one["name"] == f"{own.name}, pretrained"]
    centre = found["profile"]["centre_of_mass"]

    assert card["sizes"]["induction heads"] == found["profile"]["n_induction_heads"]
    assert {found["causal"]["verdict"], found["composition"]["verdict"]} < set(card["formed"])
    assert f"{centre['value']:.2f} [{centre['low']:.2f}, {centre['high']:.2f}]" in card["formed"][1]

    # What no figure of the pipeline shows.
    said = " | ".join(card["formed"])
    assert f"p = {found['nulls']['permute_summary']['p_max']:.2g} |" in said
    assert f"above {found['nulls']['untrained_summary']['max']:.4f} |" in said
    assert f"by {found['lagbuckets']['centre_of_mass_shift']['value']:+.3f} [" in said
