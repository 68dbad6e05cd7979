"""What a command computes and where it puts it: stages of the pipeline, experiments, and the
paper's profile.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import small_project
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, load_json
from interp_core.files.params import read_section
from pythia_topology.model import READ_LATER
from pythia_topology.params import PythiaTopology
from pythia_topology.study import prepare
from pythia_topology.workflow import _made_scores  # pyright: ignore[reportPrivateUsage]
from small_project import induct

ROOT = Path(__file__).parents[2]
FIGURES = ("heatmap", "composition")


@pytest.fixture
def copy(random_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the random project, as the working directory, to write into."""
    folder = Path(shutil.copytree(random_project, tmp_path / "project"))
    monkeypatch.chdir(folder)
    return folder


def test_bare_commands_are_stages_that_write_where_the_pipeline_looks(copy: Path) -> None:
    for command in (
        "profile",
        "crosssize",
        "multisize",
        "nulls",
        "lagbuckets",
        "causal",
        "composition",
        "figures",
    ):
        said = induct(command)
        assert (said.code, said.err) == (0, ""), command
    data = copy / "data" / "pythia_topology"
    written = {str(file.relative_to(data)) for file in data.rglob("*") if file.is_file()}
    models = ("toy", "taller")
    metrics = {f"metrics/profile/profile_{name}.json" for name in models}
    metrics |= {
        f"metrics/{kind}/{kind}_{name}.json"
        for kind in ("nulls", "causal", "composition")
        for name in models
    }
    metrics |= {f"metrics/lagbuckets/lags_{name}.json" for name in models}
    metrics |= {"metrics/crosssize/cross_size.json", "metrics/multisize/multi_size.json"}
    scores = {f"scores/profile/scores_{name}.npz" for name in models}
    scores |= {
        f"scores/{kind}/{kind}_{name}.npz" for kind in ("causal", "composition") for name in models
    }
    figures = {f"figures/{kind}_taller.png" for kind in FIGURES}
    figures |= {f"figures/{name}.png" for name in ("multi_size_overlay", "lag_profiles")}
    figures |= {f"figures/{name}.png" for name in ("causal_delta", "dose")}
    results = metrics | scores
    records = {f"{file.rpartition('/')[0]}/induction-lab.sha256" for file in results}
    assert written == results | records | figures
    assert not (copy / "outputs").exists()
    assert "made_from" not in load_json(data / "metrics" / "profile" / "profile_toy.json")


def test_an_option_makes_an_experiment_of_it(copy: Path) -> None:
    assert induct("profile", "--model", "toy", "--task_types", "spaced_pairs").code == 0
    assert (copy / "outputs" / "pythia_topology" / "tests" / "toy" / "scores_toy.npz").is_file()
    assert not (copy / "data" / "pythia_topology").exists()


@pytest.mark.usefixtures("project")
def test_an_experiment_has_all_files_of_a_command_flat_in_its_folder(tmp_path: Path) -> None:
    for command in ("crosssize", "multisize", "lagbuckets", "causal", "nulls"):
        said = induct(
            command, "--models", "toy", "taller", "--task_types", "spaced_pairs", "--out", tmp_path
        )
        assert (said.code, said.err) == (0, ""), command
    names = {file.name for file in tmp_path.iterdir()}
    assert all(file.is_file() for file in tmp_path.iterdir())
    assert {
        "cross_size.json",
        "cross_size_overlay.png",
        "multi_size.json",
        "multi_size_overlay.png",
    } <= names
    assert {
        "lag_profiles.png",
        "causal_delta.png",
        "lags_toy.json",
        "causal_taller.json",
        "nulls_toy.png",
    } <= names


@pytest.mark.usefixtures("project")
def test_a_model_of_one_layer_has_nothing_to_compose(project: Path, tmp_path: Path) -> None:
    tokenizer = small_project.corpus_tokenizer(project / "data" / "corpus")
    flat = small_project.save_model(
        tmp_path / "flat", small_project.random_model(layers=1, seed=0), tokenizer
    )
    said = induct(
        "composition", "--model", flat, "--out", tmp_path / "out", "--task_types", "spaced_pairs"
    )
    assert (said.code, said.err) == (0, "")
    assert "no pair of heads can compose: one layer" in said.out


@pytest.mark.usefixtures("project")
def test_options_reach_the_settings_and_the_rest_is_the_profile(tmp_path: Path) -> None:
    run = prepare(
        None, tmp_path, models=("toy",), n_sequences=9, lag_values=(2, 3), task_types=("ABAB",)
    )
    assert run.params.models == ("toy",)
    assert (run.params.n_sequences, run.params.lag_values, run.params.task_types) == (
        9,
        (2, 3),
        ("spaced_pairs",),
    )
    untouched = {"models", "n_sequences", "lag_values", "task_types"}
    profile = read_section("pythia_topology", PythiaTopology)
    assert run.params.model_dump(exclude=untouched) == profile.model_dump(exclude=untouched)
    assert prepare(None, tmp_path).params == profile


@pytest.mark.usefixtures("project")
def test_two_models_never_share_their_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two models would write files of the name toy"):
        prepare(None, tmp_path, models=("toy", "elsewhere/toy"))
    with pytest.raises(InputError, match="name model"):
        prepare(None, tmp_path, models=("lab/model@step1", "lab/model@step2"))


# What scores depend on


def test_what_scores_are_made_from_leaves_out_what_the_profile_stage_does_not_read() -> None:
    (params,) = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["pythia_profile"][
        "params"
    ]
    read = {
        name.removeprefix("pythia_topology.") for name in next(iter(params.values())) if "." in name
    }
    assert set(PythiaTopology.model_fields) - READ_LATER == read


@pytest.mark.usefixtures("project")
def test_what_scores_are_made_from_changes_with_what_they_depend_on_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    def made(model: str, **changes: Any) -> dict[str, Any]:
        run = prepare(None, tmp_path)
        return _made_scores(replace(run, params=run.params.model_copy(update=changes)), model)

    first = made("toy")
    assert made("taller") != first
    for change in ({"seed": 1}, {"period": 9}, {"dtype": "bfloat16"}, {"smallest_excess": 0.1}):
        assert made("toy", **change) != first
    for change in ({"models": ("toy",)}, {"causal_top_k": 2}, {"split_lag": 4}, {"threads": 2}):
        assert made("toy", **change) == first


# The paper's profile, with small models in a hub cache under the real names and commits

SHRUNK = [
    "--n_sequences",
    16,
    "--seq_len",
    64,
    "--period",
    12,
    "--lag_values",
    1,
    2,
    8,
    "--split_lag",
    2,
]
SHRUNK += ["--bootstrap_resamples", 100, "--permutation_draws", 1000, "--threads", 1]


@pytest.fixture
def paper(random_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's own profile `paper`, and pythia-410m and pythia-1b in a hub cache."""
    folder = tmp_path / "paper"
    (folder / "profiles").mkdir(parents=True)
    shutil.copy(ROOT / "profiles" / "paper.yaml", folder / "profiles")
    shutil.copytree(random_project / "data", folder / "data")
    (folder / "params.yaml").write_text("profile: paper\n")
    models = yaml.safe_load((ROOT / "profiles" / "paper.yaml").read_text())["models"]
    tokenizer = small_project.corpus_tokenizer(folder / "data" / "corpus")
    for name, layers in (("pythia-410m", 3), ("pythia-1b", 2)):
        # Pythia embeds more ids than its tokenizer has
        model = small_project.random_model(
            layers=layers, seed=1, vocab=640, max_position_embeddings=256
        )
        files = small_project.save_model(tmp_path / name, model, tokenizer)
        small_project.seed_hub(
            tmp_path / "cache", models[name]["repo"], models[name]["revision"], files
        )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(folder)
    return folder


def test_the_papers_models_run_under_their_real_names(paper: Path) -> None:
    said = induct("profile", "--profile", "paper", "--model", "pythia-410m", *SHRUNK)
    assert said.code == 0, said.err
    assert all(" changes nothing in " in line for line in said.err.splitlines())
    outputs = paper / "outputs" / "pythia_topology" / "paper"
    out = outputs / "pythia-410m"
    arrays = load_arrays(out / "scores_pythia-410m.npz")
    assert arrays["prefix_matching"].shape == (3, 4)
    assert {
        "names/prefix_matching",
        "natural_repeats/prefix_matching",
        "spaced_pairs/prefix_matching",
    } <= set(arrays)
    said = induct("crosssize", "--models", "pythia-410m", "pythia-1b", *SHRUNK)
    assert said.code == 0, said.err
    assert all(" changes nothing in " in line for line in said.err.splitlines())
    assert said.out.splitlines()[-1].startswith("relative depth of these trainings, ")
    out = outputs / "pythia-410m+pythia-1b"
    report = load_json(out / "cross_size.json")
    assert set(report["models"]) == {"pythia-410m", "pythia-1b"}
    hashes = [
        load_json(out / f"profile_{name}.json")["prompts_hash"]
        for name in ("pythia-410m", "pythia-1b")
    ]
    assert hashes[0] == hashes[1]
    assert (out / "cross_size_overlay.png").is_file()


@pytest.mark.usefixtures("paper")
def test_the_papers_other_models_are_named_with_their_commit_where_no_hub_answers() -> None:
    for model in ("pythia-70m", "gpt2"):
        said = induct("profile", "--model", model)
        assert said.code == 2
        assert "cannot be reached" in said.err
    assert "openai-community/gpt2 at revision 607a30d783dfa663caf39e06633721c8d4cfcd7e" in said.err


def test_the_papers_settings_are_the_seeds() -> None:
    params = read_section("pythia_topology", PythiaTopology, str(ROOT / "profiles" / "paper.yaml"))
    assert (params.n_sequences, params.seq_len, params.batch_size, params.period) == (
        400,
        256,
        8,
        50,
    )
    assert (params.high_score_quantile, params.causal_top_k) == (0.9, 3)
    assert params.models == ("pythia-410m", "pythia-1b")
    assert np.all(np.array(params.lag_values) + 4 <= params.seq_len)


# Whose files these are


@pytest.mark.usefixtures("project")
def test_a_second_model_of_the_same_name_is_refused_before_it_replaces_the_first(
    project: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(project / "models" / "taller", tmp_path / "mine" / "toy"))
    command = ("profile", "--task_types", "spaced_pairs", "--out", tmp_path / "out")
    assert induct(*command, "--model", "toy").code == 0
    before = (tmp_path / "out" / "scores_toy.npz").read_bytes()

    said = induct(*command, "--model", mine)
    assert said.code == 2
    assert "has the same name toy: name another folder (--out)" in said.err
    assert (tmp_path / "out" / "scores_toy.npz").read_bytes() == before


@pytest.mark.usefixtures("project")
def test_figures_of_a_folder_are_drawn_from_it_and_into_it(copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    assert "run `induct profile" in induct("figures", "--out", out).err
    assert (
        induct("profile", "--model", "toy", "--task_types", "spaced_pairs", "--out", out).code == 0
    )
    (out / "heatmap_toy.png").unlink()

    said = induct("figures", "--out", out)
    assert (said.code, said.err) == (0, "")
    assert (out / "heatmap_toy.png").is_file()
    assert not (copy / "data" / "pythia_topology").exists()

    said = induct("figures", "--model", "nosuchmodel", "--models", "toy", "--out", out)
    assert said.code == 2
    assert "has no scores of nosuchmodel, only of toy" in said.err
    assert induct("figures", "--model", "toy", "--out", out).code == 0


def test_a_branch_that_was_uploaded_again_is_measured_again(
    random_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(random_project)
    command = (
        "profile",
        "--model",
        "lab/net@main",
        "--task_types",
        "spaced_pairs",
        "--out",
        tmp_path / "out",
    )
    found = []
    for name in ("toy", "taller"):
        files = random_project / "models" / name
        commit = {"toy": "a", "taller": "b"}[name] * 40
        small_project.seed_hub(tmp_path / "cache", "lab/net", commit, files)
        refs = tmp_path / "cache" / "models--lab--net" / "refs"
        (refs / "main").write_text(commit)
        said = induct(*command)
        assert said.code == 0, said.err
        found.append(load_arrays(tmp_path / "out" / "scores_net.npz")["prefix_matching"].shape)
    assert found == [(2, 4), (3, 4)]
