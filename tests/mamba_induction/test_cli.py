"""The commands as a user types them: what they write, and what they say when something is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml

import decoders
import small_models as small
from interp_core.files.artifacts import load_arrays, load_json
from interp_core.training.curves import cell_of, curve_of
from mamba_project import Said, mamba_induction, random_mamba, smoke_section, write_profile
from small_project import corpus_tokenizer, save_model, seed_hub
from wandb_files import logged

SECTIONS = (
    "OVERALL",
    "PER SEQUENCE",
    "LAYER-WISE EMERGENCE",
    "PREDICTIONS",
    "RECOGNITION AGAINST PREDICTION",
)


def test_run_writes_every_file_that_was_promised(finished: tuple[Path, Said]) -> None:
    out, said = finished
    assert said.code == 0, said.err
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    models = ("mamba", "mamba-tuned", "twin")
    expected = {
        f"{stem}_{name}.{kind}"
        for name in models
        for stem, kind in (("scores", "npz"), ("analysis", "json"))
    }
    expected |= {
        f"{stem}_{name}.{kind}"
        for name in models
        for stem in ("gap", "causal")
        for kind in ("npz", "json")
    }
    expected |= {
        "sequences_mamba-tuned.npz",
        "mamba-tuned",
        "fine_tune.csv",
        "fine_tune.json",
        "arms.json",
        "change.json",
    }
    expected |= {
        f"{stem}_seq{i}.png" for i in range(2) for stem in ("induction_analysis", "prediction_gap")
    }
    expected |= {
        f"{stem}.png" for stem in ("layer_wise_induction", "behaviour", "prediction_gap", "causal")
    }
    assert names == expected | {"fine_tuning.png", "analysis_summary.txt", "induction-lab.sha256"}
    text = (out / "analysis_summary.txt").read_text()
    assert all(
        f"\n{section}" in text
        for section in (*SECTIONS, "FIRST AGAINST SECOND OCCURRENCE", "FINE-TUNING")
    )
    assert "alpha x + D x" in said.out
    before = load_arrays(out / "scores_mamba.npz")
    assert before["offset_profile"].shape == (2, 6)
    assert before["channel_prefix_matching"].shape == (2, 64)
    for name in (
        "prefix_matching",
        "hidden_similarity",
        "hidden_similarity_excess",
        "reconstruction_error",
    ):
        assert before[name].shape == (2,), name
    assert before["reconstruction_error"].max() < 1e-4
    after = load_arrays(out / "scores_mamba-tuned.npz")
    change = load_json(out / "change.json")
    difference = (
        after["prompts/text_loss"].astype(float).mean()
        - before["prompts/text_loss"].astype(float).mean()
    )
    assert change["text_loss"]["value"] == pytest.approx(difference, abs=1e-5)
    assert change["text_loss"]["value"] < 0


def test_analyse_takes_any_mamba_directory_even_without_a_tokenizer(
    project: Path, tmp_path: Path
) -> None:
    random_mamba(seed=5, vocab=200, hidden_size=16).save_pretrained(tmp_path / "theirs")
    said = mamba_induction("analyse", "--model", tmp_path / "theirs", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "theirs: has no tokenizer, real text is left out" in said.err
    report = load_json(tmp_path / "out" / "analysis_theirs.json")
    assert report["real_text"] is False
    assert "natural_accuracy" not in report["scores"]
    assert (tmp_path / "out" / "induction_analysis_seq0.png").is_file()
    assert not (tmp_path / "out" / "analysis_twin.json").exists()


def test_the_same_settings_give_the_same_bytes(
    project: Path, finished: tuple[Path, Said], tmp_path: Path
) -> None:
    for command in ("analyse", "gap"):
        assert mamba_induction(command, "--model", "mamba", "--out", tmp_path).code == 0
    for name in ("scores_mamba.npz", "analysis_mamba.json", "gap_mamba.npz", "gap_mamba.json"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes(), name


def test_arms_are_measured_on_the_documents_that_their_training_is_watched_on(
    finished: tuple[Path, Said],
) -> None:
    tuning, arms = (load_json(finished[0] / f"{name}.json") for name in ("fine_tune", "arms"))
    own = next(iter(arms["arms"].values()))

    for watched, arm in ((tuning["before"], arms["before"]), (tuning["after"], own)):
        perplexity = watched["held_out_perplexity"]
        assert arm["held_out_perplexity"] == pytest.approx(perplexity, rel=1e-6)


def test_a_wandb_run_holds_the_induction_numbers_of_every_evaluation(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mamba_induction("fine-tune", "--out", tmp_path).code == 0
    wandb.teardown()  # as at the end of a program: the last records are written then
    rows = np.genfromtxt(tmp_path / "fine_tune.csv", delimiter=",", names=True)
    assert rows["step"].tolist() == [0, 1, 2, 4]
    files = sorted(
        (project / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime
    )
    # The other arms of fine-tuning are runs too, later ones, and are not watched.
    watched = [
        {row["_step"]: row for row in logged(file) if "heldout/perplexity" in row} for file in files
    ]
    live = [rows for rows in watched if rows][-1]
    assert list(live) == [0, 1, 2, 4]
    names = rows.dtype.names or ()
    assert {"held_out_perplexity", "repeat_accuracy", "unpredicted_accuracy"} < set(names)
    assert any("prefix_matching" in name for name in names)
    for row in rows:
        for name in set(names) - {"step"}:
            if cell_of(name) is None:  # numbers of heads are one table
                told = live[int(row["step"])][curve_of(name).name]
                assert told == pytest.approx(row[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyse", "--model", "nowhere"], "unknown model nowhere"),
        (["fine-tune", "--model", "twin"], "twin is a gpt_neox, not a Mamba"),
        (
            ["fine-tune", "--dataset", "nowhere.txt"],
            "--dataset nowhere.txt: neither a file, a folder nor",
        ),
        (["fine-tune", "--texts", "0"], "--texts: Input should be greater than 0"),
        (["fine-tune", "--lr", "-1"], "--lr: Input should be greater than 0"),
        (
            ["fine-tune", "--max_length", "1"],
            "--max-length: Input should be greater than or equal to 2",
        ),
        (["analyse", "--n-prompts", "8"], "null_level: 0.01 needs n_prompts 9"),
        (["analyse", "--device", "cuda:9"], "device cuda"),
        (["figures", "--model", "mamba", "--out", "empty"], ""),
    ],
)
def test_bad_input_is_one_line(
    project: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = [] if "--out" in arguments else ["--out", str(tmp_path)]
    said = mamba_induction(*arguments, *out)
    if not message:
        assert said.code == 0
        assert "0 figures" in said.out
        return
    assert said.code == 2
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\n", "text.txt has too few documents (0 for training, 0 for validation)"),
        ("word\n\n" * 30, "the text has only 0 windows"),
    ],
)
def test_texts_that_are_empty_or_too_short_are_refused(
    project: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "text.txt").write_text(text)
    said = mamba_induction(
        "fine-tune", "--dataset", tmp_path / "text.txt", "--out", tmp_path / "out"
    )
    assert said.code == 2
    assert message in said.err


# The scan beside attention, which is as large as in the real one unless it is said.
SIZES: dict[str, dict[str, Any]] = {
    "falcon_h1": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_ssm": 64,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
    }
}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("falcon_h1", "a state-space scan"),
        ("rwkv", "an RWKV recurrence"),
    ],
)
def test_other_recurrent_models_and_hybrids_are_named_and_refused(
    project: Path, tmp_path: Path, kind: str, words: str
) -> None:
    decoders.build(kind, **SIZES.get(kind, {})).save_pretrained(tmp_path / "other")
    said = mamba_induction("analyse", "--model", tmp_path / "other", "--out", tmp_path / "out")
    assert said.code == 2
    assert f"other is a {kind}: it mixes tokens by {words}" in said.err
    assert said.err.strip().count("\n") == 0


@pytest.mark.parametrize("kind", ["falcon_mamba", "mamba2"])
def test_falcon_mamba_and_mamba2_are_analysed(project: Path, tmp_path: Path, kind: str) -> None:
    small.build(kind, num_hidden_layers=2).save_pretrained(tmp_path / kind)
    said = mamba_induction("analyse", "--model", tmp_path / kind, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "falling back" not in said.err

    report = load_json(tmp_path / "out" / f"analysis_{kind}.json")
    assert report["architecture"] == kind
    assert report["reconstruction_error"] < 1e-5


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_folder: Path) -> Path:
    """A project with profile paper's section, small, and a hub cache that holds its model, twin and
    data set.
    """
    from datasets import Dataset

    paper = yaml.safe_load((Path(__file__).parents[2] / "profiles" / "paper.yaml").read_text())
    folder = tmp_path / "project"
    own = {
        name: paper["mamba_induction"][name]
        for name in ("model", "twin", "dataset", "lr", "grad_accum")
    }
    known = {name: paper["models"][name] for name in (own["model"], own["twin"])}
    write_profile(folder, known, **(smoke_section() | own | {"threads": 1}))
    cache = tmp_path / "cache"
    tokenizer = corpus_tokenizer(project_folder / "data" / "corpus")
    models = {
        own["model"]: random_mamba(seed=1, vocab=512),
        own["twin"]: small.build("gpt_neox", seed=2, vocab_size=512, max_position_embeddings=256),
    }
    for name, model in models.items():
        save_model(tmp_path / name, model, tokenizer)
        seed_hub(cache, known[name]["repo"], known[name]["revision"], tmp_path / name)
    data = own["dataset"]["hub"]
    snapshot = (
        cache / f"datasets--{data['dataset'].replace('/', '--')}" / "snapshots" / data["revision"]
    )
    words = [
        "induction",
        "heads",
        "copy",
        "what",
        "came",
        "after",
        "before",
        "again",
        "state",
        "space",
    ]
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        lines = [" ".join(rng.choice(words, 60)) if i % 3 else "" for i in range(60)]
        (snapshot / data[split]).parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({"text": lines}).to_parquet(str(snapshot / data[split]))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(folder)
    return folder


def test_profile_paper_takes_its_models_and_its_text_from_the_hubs_cache(hub: Path) -> None:
    said = mamba_induction("fine-tune")
    assert said.code == 0, said.err
    home = hub / "data" / "mamba_induction"
    report = load_json(home / "metrics" / "fine_tune" / "fine_tune.json")
    assert report["name"] == "mamba-130m-tuned"
    assert report["documents"] == 16
    assert mamba_induction("analyse").code == 0
    names = {path.name for path in (home / "metrics" / "analyse").iterdir()}
    assert names == {
        f"analysis_{m}.json" for m in ("mamba-130m", "mamba-130m-tuned", "pythia-160m")
    } | {"change.json", "induction-lab.sha256"}


@pytest.mark.parametrize("what", ["revision", "column", "missing"])
def test_a_data_set_that_is_not_as_pinned_stops_the_run(hub: Path, what: str) -> None:
    profile = hub / "profiles" / "tests.yaml"
    content = yaml.safe_load(profile.read_text())
    data = content["mamba_induction"]["dataset"]["hub"]
    snapshot = next((hub.parent / "cache").glob("datasets--*")) / "snapshots" / data["revision"]
    if what == "revision":
        data["revision"] = "0" * 40
        message = f"at revision {'0' * 40}: not cached"
    elif what == "missing":
        (snapshot / data["train"]).unlink()
        message = "not cached"
    else:
        from datasets import Dataset

        Dataset.from_dict({"line": ["a"]}).to_parquet(str(snapshot / data["train"]))
        message = "has no column `text`"
    profile.write_text(yaml.safe_dump(content))
    said = mamba_induction("fine-tune")
    assert said.code == 2
    assert message in said.err
    # The folder may be there, for whoever writes holds it: there is nothing in it.
    assert not [file for file in (hub / "data").rglob("*") if file.is_file()]


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_measured(
    project: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    said = mamba_induction("analyse", "--out", tmp_path / "file" / "inside")
    assert said.code == 2
    assert f"cannot write into {tmp_path / 'file' / 'inside'}" in said.err
    assert said.out == ""


def two_of_one_name(project: Path, folder: Path) -> list[Path]:
    """Two unrelated Mambas whose folders are both called `final`."""
    tokenizer = corpus_tokenizer(project / "data" / "corpus")
    return [
        save_model(folder / name / "final", random_mamba(seed=seed, vocab=512), tokenizer)
        for seed, name in enumerate("xy")
    ]


def test_what_was_tuned_from_one_model_is_never_reported_of_another(
    project: Path, tmp_path: Path
) -> None:
    x, y = two_of_one_name(project, tmp_path)
    assert mamba_induction("fine-tune", "--model", x, "--out", tmp_path / "o").code == 0
    before = {file: file.read_bytes() for file in (tmp_path / "o").rglob("*") if file.is_file()}
    said = mamba_induction("fine-tune", "--model", x, "--lr", "0.02", "--out", tmp_path / "o")
    assert said.code == 2
    assert "holds a training with other settings (recipe.learning_rate " in said.err
    assert said.err.count("\n") == 1
    after = {file: file.read_bytes() for file in (tmp_path / "o").rglob("*") if file.is_file()}
    assert after == before

    said = mamba_induction("analyse", "--model", y, "--out", tmp_path / "o")
    assert said.code == 2
    assert "has the same name final: name another folder (--out)" in said.err

    # The same place with other weights: neither is that what was tuned.
    random_mamba(seed=9, vocab=512).save_pretrained(x)
    said = mamba_induction("analyse", "--model", x, "--out", tmp_path / "o")
    assert said.code == 2
    assert "run `mamba-induction fine-tune` again" in said.err
