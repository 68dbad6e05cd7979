"""Onsets lie where they were planted: checkpoints that turn the hand-built heads on at known
steps."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import known_circuits as known
import small_project
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, load_json, load_weights, save_weights
from interp_core.loading import load_model
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import Transformer, as_transformer
from interp_core.stimuli.prompts import Prompts
from pythia_topology import measure_checkpoints
from pythia_topology.data import stimuli
from pythia_topology.measure_checkpoints import checkpoints, scores_over_training
from pythia_topology.measure_emergence import emergence
from small_project import induct

STEPS = [0, *(2**i for i in range(13))]
PREVIOUS_AT, INDUCTION_AT = (
    (32, 64),
    (512, 1024),
)  # the head is off at the first step and on at the second
Weights = dict[str, torch.Tensor]


def with_strength(weights: Weights, previous: float, induction: float) -> Weights:
    """The planted weights with both heads' queries and outputs scaled, 0 off and 1 as planted."""
    scaled = {name: tensor.clone() for name, tensor in weights.items()}
    for (layer, head), strength in (
        (known.PREVIOUS_TOKEN_HEAD, previous),
        (known.INDUCTION_HEAD, induction),
    ):
        own = slice(head * known.SIZE, (head + 1) * known.SIZE)
        block = f"transformer.h.{layer}.attn."
        scaled[block + "c_attn.weight"][:, own] *= strength
        scaled[block + "c_attn.bias"][own] *= strength
        scaled[block + "c_proj.weight"][own] *= strength
    return scaled


def save_checkpoints(folder: Path, model: Any, *, steps: list[int] = STEPS) -> None:
    """The planted circuit forming between 0 and the last step."""
    weights = model.state_dict()
    for step in steps:
        strengths = (float(step >= PREVIOUS_AT[1]), float(step >= INDUCTION_AT[1]))
        formed = with_strength(
            weights, *(strength + step * 1e-6 for strength in strengths)
        )  # no two are equal
        save_weights(folder / "checkpoints" / f"step-{step:06d}.safetensors", formed)


@pytest.fixture(scope="module")
def trained(planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted model as if its training had left checkpoints."""
    folder = Path(
        shutil.copytree(
            planted_folder / "models" / "induction", tmp_path_factory.mktemp("run") / "induction"
        )
    )
    save_checkpoints(folder, load_model(local(folder), name="x").model)
    return folder


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that may be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "own"))


def local(folder: Path) -> ModelSpec:
    return ModelSpec(source="local", path=folder)


def settings(**changes: Any) -> Any:
    return small_project.study(
        **({"period": 16, "task_types": ["spaced_pairs"], "n_sequences": 10} | changes)
    )


def measured(folder: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Kept beside the model, whatever was kept before."""
    name, params = "induction", settings(**changes)
    _, prompts = loaded(folder, **changes)
    steps, series = scores_over_training(
        name, local(folder), prompts, params, kept=folder.with_name("kept")
    )
    return emergence(name, steps, series, params)


def loaded(folder: Path, **changes: Any) -> tuple[Transformer, Prompts]:
    subject = as_transformer(load_model(local(folder), name="induction"))
    return subject, stimuli(subject, settings(**changes))["repeated_tokens"]


@pytest.mark.usefixtures("planted_project")
def test_onsets_lie_where_they_were_planted_and_in_that_order(trained: Path) -> None:
    report, arrays = measured(trained)
    assert report["steps"] == arrays["steps"].tolist() == STEPS
    onset = report["onset"]
    for name, (off, on) in (
        ("previous_token_head", PREVIOUS_AT),
        ("induction_head", INDUCTION_AT),
        ("copy_accuracy", INDUCTION_AT),
    ):
        step = onset[name]["step"]
        assert off <= step["value"] <= on, name
        # Nothing was measured between two checkpoints: no interval is narrower than they are apart.
        assert (step["low"], step["high"]) == (off, on)
        assert onset[name]["low"] < 0.1
        assert onset[name]["high"] == pytest.approx(1, abs=0.01)
    words = report["verdict"].removeprefix("in order: ").split(", ")
    assert words[0].startswith("previous token head at step")
    others = {word.split(" at ")[0] for word in words[1:]}
    named = {
        name for word in others for name in ("induction head", "copy accuracy") if name in word
    }
    assert named == {"induction head", "copy accuracy"}
    assert words[1].startswith("then ")
    assert words[2].startswith("with ")  # they rise between the same two checkpoints


@pytest.mark.usefixtures("planted_project")
def test_the_series_follow_the_planted_heads(trained: Path) -> None:
    report, arrays = measured(trained)
    shape = (len(STEPS), known.N_LAYERS, known.N_HEADS)
    assert arrays["excess_prefix_matching"].shape == arrays["previous_token"].shape == shape
    for name, head, (_, on) in (
        ("excess_prefix_matching", known.INDUCTION_HEAD, INDUCTION_AT),
        ("previous_token", known.PREVIOUS_TOKEN_HEAD, PREVIOUS_AT),
    ):
        series = arrays[name][(slice(None), *head)]
        np.testing.assert_allclose(series, np.array(STEPS) >= on, atol=0.1)
    assert arrays["accuracy"][-1] == 1
    assert arrays["loss"][0] == pytest.approx(np.log(known.SIZE), abs=0.1)
    depth = (known.INDUCTION_HEAD[0] + 0.5) / known.N_LAYERS
    formed = np.array(STEPS) >= INDUCTION_AT[1]
    assert [
        centre == pytest.approx(depth) for centre in report["centre_of_mass"]
    ] == formed.tolist()


@pytest.mark.usefixtures("planted_project")
def test_the_command_writes_report_series_and_figure(trained: Path, tmp_path: Path) -> None:
    said = induct(
        "emergence", "--model", trained, "--out", tmp_path, "--period", 16, "--causal_sequences", 8
    )
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[-1].startswith("induction: in order: previous token head at step")
    assert {file.name for file in tmp_path.iterdir()} == {
        "induction-lab.sha256",
        "emergence_induction.json",
        "emergence_induction.npz",
        "emergence.png",
    }
    assert load_json(tmp_path / "emergence_induction.json")["n"] == 8
    assert load_arrays(tmp_path / "emergence_induction.npz")["steps"].tolist() == STEPS


@pytest.mark.usefixtures("project")
def test_random_weights_have_no_onset(random_project: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(random_project / "models" / "toy", tmp_path / "noise"))
    for step in (0, 1, 10, 100, 1000):
        weights = small_project.random_model(layers=2, seed=100 + step).state_dict()
        save_weights(folder / "checkpoints" / f"step-{step:06d}.safetensors", weights)
    report, _ = measured(folder, period=10)
    assert report["onset"]["induction_head"] is None
    assert report["onset"]["copy_accuracy"] is None
    assert report["verdict"] == "no induction head emerges"


# What is kept


def _counted(monkeypatch: pytest.MonkeyPatch, *, stop_after: int | None = None) -> list[None]:
    """Grows with every checkpoint that is measured; Ctrl-C comes at the one after the last."""
    measured_so_far: list[None] = []
    score = measure_checkpoints._scores

    def counting(*arguments: Any) -> Any:
        if len(measured_so_far) == stop_after:
            raise KeyboardInterrupt
        measured_so_far.append(None)
        return score(*arguments)

    monkeypatch.setattr(measure_checkpoints, "_scores", counting)
    return measured_so_far


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_call_that_was_stopped_goes_on_and_measures_nothing_twice(
    own: Path, planted_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(out: str, *more: object) -> Any:
        given = ("--model", own, "--period", 16, "--out", tmp_path / out)
        return induct("emergence", *given, *more)

    kept = planted_project / ".scratch" / "pythia_emergence"
    assert command("untouched").code == 0

    with monkeypatch.context() as patched:
        _counted(patched, stop_after=5)
        stopped = command("out")
    assert stopped.code == 130
    assert "the same command continues" in stopped.err
    assert len(list(kept.glob("*/step-*/scores.npz"))) == 5

    # What a kill left without its record was not written to its end.
    torn = next(kept.glob("*/step-000000-*"))
    (torn / "induction-lab.sha256").unlink()

    # Of other settings nothing is taken, and nothing is lost.
    counted = _counted(monkeypatch)
    assert command("other", "--batch-size", 3).code == 0
    assert len(counted) == len(STEPS)

    counted.clear()
    assert command("out").code == 0
    assert len(counted) == len(STEPS) - 4
    assert _files(tmp_path / "out") == _files(tmp_path / "untouched")
    assert not list(kept.iterdir())


@pytest.mark.usefixtures("planted_project")
def test_a_checkpoint_that_became_another_is_measured_again(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = _counted(monkeypatch)
    measured(own)
    again = own / "checkpoints" / f"step-{STEPS[3]:06d}.safetensors"
    save_weights(again, with_strength(load_weights(again), 0.99, 0.99))

    counted.clear()
    measured(own)
    assert len(counted) == 1


@pytest.mark.usefixtures("planted_project")
def test_kept_scores_that_are_damaged_are_named(own: Path) -> None:
    measured(own)
    file = next((own.parent / "kept").glob("step-000004-*/scores.npz"))
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"scores\.npz is damaged: its SHA-256 is not the one"):
        measured(own)


# What is refused


@pytest.mark.usefixtures("planted_project")
def test_two_steps_with_the_same_weights_are_refused(own: Path) -> None:
    folder = own / "checkpoints"
    shutil.copy(folder / "step-000004.safetensors", folder / "step-000256.safetensors")
    with pytest.raises(
        InputError,
        match="the weights at step 256 are those of step 4: not the training checkpoints",
    ):
        measured(own)


@pytest.mark.usefixtures("planted_project")
@pytest.mark.parametrize(
    ("breakage", "says"),
    [
        ("truncated", r"step-000008.safetensors is damaged"),
        (
            "other model",
            r"step-000008.safetensors is no checkpoint of induction: only one of them has gpt_neox",
        ),
        (
            "other shape",
            r"step-000008.safetensors is no checkpoint of induction: lm_head.weight has another "
            "shape",
        ),
        (
            "not a number",
            r"step-000008.safetensors: weight lm_head.weight holds numbers that are not finite",
        ),
    ],
)
def test_a_bad_checkpoint_is_named(breakage: str, says: str, own: Path) -> None:
    file = own / "checkpoints" / "step-000008.safetensors"
    weights = known.induction_model().state_dict()
    if breakage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif breakage == "other model":
        save_weights(file, small_project.random_model(layers=1, seed=0).state_dict())
    else:
        content = (
            weights["lm_head.weight"][:-1]
            if breakage == "other shape"
            else weights["lm_head.weight"] * np.nan
        )
        save_weights(file, weights | {"lm_head.weight": content})
    with pytest.raises(InputError, match=says) as problem:
        measured(own)
    assert "\n" not in str(problem.value)


def test_fewer_than_four_checkpoints_are_no_series(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for step in (0, 1, 2):
        (tmp_path / "checkpoints" / f"step-{step:06d}.safetensors").touch()
    with pytest.raises(InputError, match=r"at least 4 training checkpoints .* holds no step-"):
        checkpoints(local(tmp_path), settings())
    hub = ModelSpec(source="hub", repo="lab/model", revision="main")
    with pytest.raises(
        InputError,
        match="checkpoints of lab/model: name its branches in `revisions`, such as step1000",
    ):
        checkpoints(hub, settings(revisions=["step0", "step1", "step2"]))
    with pytest.raises(InputError, match="'main' is not a checkpoint: write step1000"):
        checkpoints(hub, settings(revisions=["main"]))


def test_checkpoints_are_ordered_by_step(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for step in (1000000, 20, 3, 100):
        (tmp_path / "checkpoints" / f"step-{step:06d}.safetensors").touch()
    assert [checkpoint.step for checkpoint in checkpoints(local(tmp_path), settings())] == [
        3,
        20,
        100,
        1000000,
    ]
    hub = ModelSpec(source="hub", repo="lab/model", revision="main")
    found = checkpoints(hub, settings(revisions=["step1000", "step0", "step512", "step8"]))
    assert [checkpoint.weights for checkpoint in found] == ["step0", "step8", "step512", "step1000"]


# Branches of a hub model


def seed_branches(cache: Path, project: Path, scratch: Path, repeat: bool) -> None:
    """A hub model whose branches step0 ... step1000 hold the circuit as it forms, and whose main
    holds it formed.
    """
    model = known.induction_model()
    small_project.silence_at_bos(model)
    planted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for revision, strength in (
        ("step0", 0.0),
        ("step10", 0.1),
        ("step100", 0.1 if repeat else 0.2),
        ("step1000", 1.0),
    ):
        model.load_state_dict(with_strength(planted, strength, strength))
        folder = small_project.save_model(scratch / revision, model, small_project.word_tokenizer())
        small_project.seed_hub(cache, "lab/forming", revision, folder)
    small_project.seed_hub(cache, "lab/forming", "main", project / "models" / "induction")


@pytest.mark.parametrize("repeat", [False, True])
def test_a_hub_model_is_followed_over_its_branches(
    repeat: bool, planted_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    seed_branches(tmp_path / "cache", planted_project, tmp_path / "scratch", repeat)
    branches = ["step1000", "step0", "step100", "step10"]
    out = tmp_path / "out"
    said = induct(
        "emergence",
        "--model",
        "lab/forming",
        "--revisions",
        *branches,
        "--period",
        16,
        "--out",
        out,
    )
    if repeat:
        assert said.code == 2
        assert "forming: the weights at step 100 are those of step 10" in said.err
        assert list(out.iterdir()) == []
        return
    assert (said.code, said.err) == (0, "")
    report = load_json(out / "emergence_forming.json")
    assert report["steps"] == [0, 10, 100, 1000]
    assert 100 < report["onset"]["induction_head"]["step"]["value"] < 1000
    assert load_arrays(out / "emergence_forming.npz")["accuracy"][-1] == 1
