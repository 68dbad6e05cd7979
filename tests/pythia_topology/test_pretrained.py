"""Pretrained models beside the family: left out without a trace, and the real one against plain
code."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import small_project
from interp_core.errors import InputError
from interp_core.files.artifacts import load_json
from interp_core.files.params import profile_path, read_section
from interp_core.loading import load_model
from interp_core.measures.scores import attention_scores
from interp_core.models.pretrained import Pretrained, fetch_all
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import Transformer, as_transformer
from interp_core.statistics.heads import Head
from interp_core.stimuli.prompts import Prompts, Vocabulary, repeated_tokens, special_ids
from pythia_topology.answers import answers
from pythia_topology.cli import main
from pythia_topology.intervene_paths import path_patching

NAME = "smollm2-135m"
ROOT = Path(__file__).resolve().parents[2]
HOME = Path("data") / "pythia_topology" / "pretrained"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose pretrained model is the hand-built circuit."""
    monkeypatch.chdir(small_project.build_pretrained_project(tmp_path))
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def family(metrics: Path) -> None:
    """The metrics of the family that answers read, as if it had been measured."""
    from planted_answers import planted, save

    save(metrics, planted("pythia_topology"))


def test_a_pretrained_model_is_measured_drawn_and_answered_for(folder: Path) -> None:
    said = run("pretrained")
    assert "planted: 1 induction head" in said
    run("figures-pretrained")

    drawn = {file.name for file in (HOME / "figures").iterdir()}
    of_one = {f"{what}_planted.png" for what in ("composition", "profile")}
    of_all = {"causal_delta.png", "dose.png", "models.json"}
    assert drawn == of_one | of_all

    causal = load_json(HOME / "metrics" / "causal" / "causal_planted.json")
    assert (causal["n"], causal["single_n"], causal["prompts_begin_with"]) == (6, 3, "w0 (id 0)")
    paths = load_json(HOME / "metrics" / "composition" / "composition_planted.json")
    assert [pair["writer"] for pair in paths["pairs"]] == ["L0H1"]
    assert paths["z_against"] == "other heads' directions"

    family(folder / "data" / "pythia_topology")
    found = {one.name: one for one in answers(folder / "data" / "pythia_topology" / "metrics")}
    of_ours = [name for name in found if name.endswith("planted")]
    assert of_ours == [
        "centre_of_planted",
        "change_without_top_heads_of_planted",
        "strongest_path_of_planted",
    ]
    assert found["strongest_path_of_planted"].value == pytest.approx(-1, abs=0.05)
    assert found["change_without_top_heads"].says.endswith("the least of all")  # of the family


def test_left_out_the_stages_run_and_say_that_there_are_none(folder: Path) -> None:
    small_project.choose_pretrained(folder, included=False)
    assert run("pretrained").startswith("no pretrained models: left out in ")
    run("figures-pretrained")
    for kind in ("scores", "metrics", "figures"):
        assert [file.name for file in (HOME / kind).iterdir()] == ["models.json"]

    family(folder / "data" / "pythia_topology")
    found = answers(folder / "data" / "pythia_topology" / "metrics")
    assert not [one.name for one in found if one.name.endswith("planted")]


def test_a_damaged_model_is_refused_before_it_is_measured(folder: Path) -> None:
    (folder / "data" / "pretrained" / "planted" / "config.json").write_text("{}")
    result = CliRunner().invoke(main, ["pretrained"])
    assert result.exit_code == 2
    assert "config.json is damaged" in result.output
    assert "dvc repro --force pretrained" in result.output


def test_a_model_that_is_added_to_the_family_measures_none_anew(folder: Path) -> None:
    run("pretrained")
    before = {file: file.read_bytes() for file in HOME.rglob("*") if file.is_file()}

    # DVC may run this stage before the one that trains the new member.
    path = folder / "profiles" / "tests.yaml"
    profile = yaml.safe_load(path.read_text())
    profile["pythia_topology"]["models"] += ["data/models/not-trained-yet"]
    path.write_text(yaml.safe_dump(profile))
    said = run("pretrained")

    put_back = "planted: measured before with these settings and this code, put back"
    assert said.splitlines().count(put_back) == len(("profile", "causal", "composition"))
    assert {file: file.read_bytes() for file in before} == before


def test_a_misspelt_size_is_named(folder: Path) -> None:
    small_project.choose_pretrained(folder, n_sequenzes=9)
    result = CliRunner().invoke(main, ["pretrained"])
    assert result.exit_code == 2
    assert "pythia_pretrained.models.planted.settings: unknown key `n_sequenzes`" in result.output


# What code of others found: eager attention, 24 prompts of two copies of 50 random tokens.
PREFIX_MATCHING = {"L18H6": 0.90, "L17H3": 0.77, "L17H4": 0.73, "L17H5": 0.64, "L18H7": 0.61}
PREFIX_MATCHING |= {"L23H2": 0.50}
PREVIOUS_TOKEN = "L16H0"
WITHOUT_IT = {"L18H6": -0.854, "L17H3": -0.721, "L17H4": -0.734}


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    """The model of the run, or fetched; skipped with pip's reason where it cannot be had."""
    place = ROOT / "data" / "pretrained"
    if not (place / NAME / "model.safetensors").is_file():
        place, profile = tmp_path_factory.mktemp("pretrained"), profile_path("laptop")
        try:
            fetch_all(read_section("pretrained", Pretrained, "laptop"), place, profile=profile)
        except InputError as problem:
            pytest.skip(f"needs SmolLM2's weights: {problem}")
    found = load_model(ModelSpec(source="local", path=place / NAME), name=NAME)
    return as_transformer(found)


@pytest.fixture(scope="module")
def prompts(smollm: Transformer) -> Prompts:
    special = special_ids(smollm.tokenizer, smollm.vocab_size)
    vocabulary = Vocabulary.of(smollm.vocab_size, bos=smollm.bos, pad=smollm.bos, special=special)
    return repeated_tokens(vocabulary, period=50, n_prompts=24, rng=np.random.default_rng(0))


@pytest.mark.slow
def test_smollm_has_the_heads_that_others_found(smollm: Transformer, prompts: Prompts) -> None:
    scores = {
        name: score.mean(axis=0)
        for name, score in attention_scores(smollm, prompts, batch_size=8).items()
    }
    for head, value in PREFIX_MATCHING.items():
        assert scores["prefix_matching"][Head.read(head)] == pytest.approx(value, abs=0.02)

    ranked = np.argsort(-scores["prefix_matching"], axis=None)[: len(PREFIX_MATCHING)]
    named = [
        str(Head(int(place) // smollm.n_heads, int(place) % smollm.n_heads)) for place in ranked
    ]
    assert named == list(PREFIX_MATCHING)
    assert scores["previous_token"][Head.read(PREVIOUS_TOKEN)] == pytest.approx(0.90, abs=0.02)


@pytest.mark.slow
def test_smollms_scores_are_those_of_eager_attention(smollm: Transformer, prompts: Prompts) -> None:
    folder = str(smollm.model.name_or_path)
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    few = prompts.pairs.batch < 4
    pairs = [column[few] for column in (prompts.pairs.batch, prompts.pairs.query)]
    keys = prompts.pairs.induction_key[few]

    with torch.no_grad():
        ids = smollm.ids(prompts.tokens[:4])
        patterns = eager(input_ids=ids, output_attentions=True).attentions

    plain = np.stack([pattern.numpy()[pairs[0], :, pairs[1], keys].mean(0) for pattern in patterns])
    ours = attention_scores(smollm, prompts, batch_size=8)["prefix_matching"][:4].mean(axis=0)
    np.testing.assert_allclose(ours, plain, atol=1e-5)


@pytest.mark.slow
def test_one_previous_token_head_feeds_smollms_induction_heads(
    smollm: Transformer, prompts: Prompts
) -> None:
    pairs = [(Head.read(PREVIOUS_TOKEN), Head.read(reader)) for reader in WITHOUT_IT]
    found = path_patching(smollm, prompts, pairs, batch_size=8).mean(axis=0)
    # Other prompts, and another way of taking it out: over two draws of prompts and with the mean
    # or zero in its place, ours lie within .05 of the other code's and within .015 of each other.
    # Plain eager code with hooks finds no way that gives all three numbers: zero, a mean, a mean
    # of each position, another prompt's vector; a frozen norm; the wanted key alone; what later
    # layers make of it too; BOS or none. Taken out directly, at most .02 is left of L17H3's and
    # L17H4's attention, so their numbers are their attention in the prompts drawn. (L17H3: .75 in
    # eight with BOS, .79 without.) That other code left .05 of L17H3's is not explained.
    np.testing.assert_allclose(found, list(WITHOUT_IT.values()), atol=0.05)
