"""`mamba-neurons` as a user has it: options, files, one helpful line where something is wrong."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from interp_core.files.artifacts import file_sha256, load_arrays, load_json
from mamba_neurons.cli import main
from small_project import Said

COMMANDS = (
    "run",
    "delta",
    "causal",
    "inter-layer",
    "cross-layer",
    "attention",
    "sparsity",
    "efficiency",
    "compare",
    "figures",
)


def neurons(*arguments: object) -> Said:
    """`mamba-neurons` with these arguments, in this process and the working directory."""
    result = CliRunner().invoke(
        main, [str(argument) for argument in arguments], catch_exceptions=False
    )
    return Said(result.exit_code, result.stdout, result.stderr)


def one_line(said: Said) -> str:
    """The only line on standard error of a command that refused."""
    assert said.code == 2
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def report(out: Path, name: str) -> dict[str, Any]:
    return load_json(out / f"{name}.json")


def test_the_whole_run_writes_one_json_with_the_keys_of_earlier_versions(
    whole: tuple[Path, Path],
) -> None:
    results = report(whole[0], "results_tiny-mamba")
    assert {"attention_data", "mamba_neurons", "analysis_results", "comparison"} <= set(results)
    assert set(results["mamba_neurons"]) == {"attention_weighted", "rollout"}

    keys = {
        "total_parameters",
        "active_neurons",
        "efficiency_ratio",
        "mean_variance",
        "mean_sparsity",
    }
    assert keys <= set(results["efficiency"])
    sparsity = results["sparsity"]
    assert {"percentile", "entropy", "gini", "optimal", "traditional"} <= set(sparsity)
    assert set(sparsity["percentile"]["p50"]) == {"threshold", "sparsity", "neurons_below"}
    assert sparsity["percentile"]["p50"]["neurons_below"] == 32  # half of two layers of 32

    for section in ("efficiency", "sparsity"):
        assert set(results[section]["models"]) == {"tiny-mamba", "tiny-twin"}
        of_mamba = results[section]["models"]["tiny-mamba"]
        assert all(results[section][key] == value for key, value in of_mamba.items())

    assert results["causal"]["layer"]["layer"] == 1
    assert len(results["causal"]["layer"]["top"]) == 2
    assert results["delta"]["texts"] == 5


def test_the_plots_lie_where_they_were_asked_for(whole: tuple[Path, Path]) -> None:
    names = {path.stem for path in whole[1].glob("*.png")}
    causal = load_json(whole[0] / "causal_tiny-mamba.json")["whole_model"]
    of_mamba = ["delta", "ranked_effects", "faithfulness"]
    if causal["exact_channels"] < causal["channels"]:
        of_mamba.append("estimates")

    assert names == {f"{name}_tiny-mamba" for name in of_mamba} | {
        "sparsity",
        "efficiency",
        "compare",
    }
    for path in whole[1].glob("*.png"):
        Image.open(path).verify()


@pytest.mark.usefixtures("project")
def test_underscores_and_dashes_give_the_same_bytes_and_so_does_a_second_run(
    tmp_path: Path,
) -> None:
    outs = []
    for spelling in ("_", "-", "-"):
        out = tmp_path / str(len(outs))
        names = {"top_k": 2, "text_limit": 5, "plots_dir": out / "plots"}
        options = [
            word
            for name, value in names.items()
            for word in (f"--{name.replace('_', spelling)}", value)
        ]
        assert neurons("causal", *options, "--out", out).code == 0
        outs.append(out)
    for name in (
        "causal_tiny-mamba.npz",
        "causal_tiny-mamba.json",
        "plots/ranked_effects_tiny-mamba.png",
    ):
        assert len({file_sha256(out / name) for out in outs}) == 1


@pytest.fixture(scope="module")
def plainly(
    project_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """What a command reports without options, measured once."""
    folder = tmp_path_factory.mktemp("plainly")

    def measured(command: str) -> dict[str, Any]:
        out = folder / command
        if not out.is_dir():
            assert neurons(command, "--out", out).code == 0
        return only_report(out, command)

    return measured


def only_report(out: Path, command: str) -> dict[str, Any]:
    """The JSON of a command, without what names its inputs."""
    (path,) = list(out.glob(f"{command.replace('-', '_')}_*.json"))
    return {
        key: value
        for key, value in load_json(path).items()
        if key not in ("model_hash", "fingerprint")
    }


def agreement(found: dict[str, Any], name: str) -> list[float]:
    """Of estimates of `name` with exact effects, by layer."""
    return [layer[name] for layer in found["whole_model"]["agreement"]]


def of_resample(found: dict[str, Any]) -> float:
    """Mean KL under resample ablation, which takes from the same batch."""
    return found["layer"]["ablations"]["resample"]["mean_kl"]


def totals(found: dict[str, Any]) -> list[float]:
    """Mean KL of each layer's residual dimensions."""
    return [layer["mean_kl"]["value"] for layer in found["layers"]]


def random_sets(found: dict[str, Any]) -> tuple[int, float | None]:
    """How many distinct sets the influence on a later layer was compared with, and its p."""
    against = found["influence"]["pairs"][0]["against_random"]
    return against["random"]["n"], against["p"]


def is_of_22(n: int, p: float | None) -> bool:
    """Whether p is (1 + hits) / (1 + 22)."""
    return n == 22 and p is not None and p * 23 % 1 == pytest.approx(0, abs=1e-9)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("command", "option", "acts"),
    [
        ("delta", ["--model", "deeper-mamba"], lambda a, b: len(b["layers"]) == 3),
        (
            "delta",
            ["--top-k", 2],
            lambda a, b: len(b["layers"]["0"]["top"]) == 2 < len(a["layers"]["0"]["top"]),
        ),
        ("delta", ["--text-limit", 6], lambda a, b: (a["texts"], b["texts"]) == (4, 6)),
        ("delta", ["--text-length", 20], lambda a, b: b["tokens"] < a["tokens"]),
        (
            "delta",
            ["--repeats", 6],
            lambda a, b: b["sha256"] == a["sha256"],
        ),  # the delta of texts of people alone
        ("inter-layer", ["--repeats", 6], lambda a, b: b["repeated_rows"] == 6),
        ("delta", ["--seed", 5], lambda a, b: a["sha256"] == b["sha256"] and a != b),
        ("sparsity", ["--sparsity-layers", 1], lambda a, b: list(b["layers"]) == ["1"]),
        (
            "attention",
            ["--attention-methods", "rollout"],
            lambda a, b: list(b["analysis_results"]) == ["rollout"],
        ),
        ("causal", ["--layer", 1], lambda a, b: b["layer"]["layer"] == 1),
        ("causal", ["--least-agreement", 0], lambda a, b: b["whole_model"]["exact_layers"] == []),
        (
            "causal",
            ["--label-draws", 2],
            lambda a, b: (
                agreement(a, "loss") == agreement(b, "loss")
                and agreement(a, "kl") != agreement(b, "kl")
            ),
        ),
        (
            "causal",
            ["--batch-size", 8],
            lambda a, b: of_resample(a) != pytest.approx(of_resample(b), rel=1e-4),
        ),
        (
            "inter-layer",
            ["--bootstrap-resamples", 200],
            lambda a, b: a != b and totals(a) == totals(b),
        ),
        (
            "inter-layer",
            ["--dtype", "float64"],
            lambda a, b: totals(a) != totals(b) == pytest.approx(totals(a), rel=1e-3),
        ),
        ("causal", ["--dtype", "bfloat16"], lambda a, b: of_resample(a) != of_resample(b)),
        (
            "cross-layer",
            ["--permutation-draws", 22],
            lambda a, b: random_sets(a) == (19, None) and is_of_22(*random_sets(b)),
        ),
    ],
)
def test_each_option_does_what_it_says(
    command: str,
    option: list[object],
    acts: Any,
    plainly: Callable[[str], dict[str, Any]],
    tmp_path: Path,
) -> None:
    before = plainly(command)
    assert neurons(command, *option, "--out", tmp_path).code == 0
    assert acts(before, only_report(tmp_path, command))


@pytest.mark.usefixtures("project")
def test_threads_are_those_asked_for_and_a_device_that_is_not_there_is_named(
    tmp_path: Path,
) -> None:
    before = torch.get_num_threads()
    try:
        assert neurons("delta", "--threads", before + 1, "--out", tmp_path).code == 0
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert "device cuda was asked for" in one_line(
        neurons("delta", "--device", "cuda", "--out", tmp_path / "out")
    )


@pytest.mark.usefixtures("project")
def test_attention_and_the_results_file_come_only_when_asked_for(tmp_path: Path) -> None:
    assert neurons("run", "--out", tmp_path, "--text-limit", 4).code == 0
    assert not list(tmp_path.glob("attention_*"))
    assert not list(tmp_path.glob("results_*"))
    assert (tmp_path / "plots" / "compare.png").is_file()


@pytest.mark.usefixtures("project")
def test_two_mambas_can_be_compared_and_texts_of_ones_own_read(tmp_path: Path) -> None:
    texts = tmp_path / "mine.txt"
    paragraphs = [
        f"Paragraph {i} says that the {'very ' * i}long array is returned unchanged."
        for i in range(9)
    ]
    texts.write_text("\n\n".join(paragraphs))
    said = neurons(
        "compare",
        "--transformer",
        "deeper-mamba",
        "--texts",
        texts,
        "--text-limit",
        8,
        "--out",
        tmp_path / "out",
    )
    assert said.code == 0
    found = report(tmp_path / "out", "compare_tiny-mamba_deeper-mamba")
    assert found["second"] == "deeper-mamba"
    assert found["texts"] == 8
    assert found["same_tokens"]


@pytest.mark.usefixtures("project")
def test_texts_longer_than_the_limit_are_cut_counted_and_said(tmp_path: Path) -> None:
    said = neurons("delta", "--text-length", 17, "--out", tmp_path)
    assert said.code == 0
    assert re.search(r"4 texts are longer than 17 tokens and were cut", said.out)
    assert report(tmp_path, "delta_tiny-mamba")["texts_truncated"] == 4


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["causal", "--layer", 2], r"tiny-mamba has layers 0 to 1; there is no layer 2"),
        (["causal", "--layer", -1], r"--layer: .*greater than or equal to 0"),
        (["causal", "--top-k", 33], r"top_k: 33 is more than the 32 neurons"),
        (["sparsity", "--sparsity-layers", 7], r"layers 0 to 1; there is no layer 7"),
        (
            ["attention", "--attention-methods", "magic"],
            r"--attention-methods: .*'attention_weighted'.*got 'magic'",
        ),
        (
            ["delta", "--model", "tiny-twin", "--transformer", "tiny-mamba"],
            r"tiny-twin is a gpt_neox, not a Mamba",
        ),
        (["delta", "--model", "nothing-here"], r"unknown model nothing-here"),
        (
            ["compare", "--transformer", "other-tokens"],
            r"different tokenizers \(text 0 .*--own-tokens",
        ),
        (
            ["compare", "--transformer", "tiny-mamba"],
            r"two models would write files of the name tiny-mamba",
        ),
        (
            ["delta", "--text-limit", 1, "--repeats", 0],
            r"1 texts and 0 rows of repeats are too few",
        ),
        (["delta", "--texts", "not-there.txt"], r"not-there.txt does not exist"),
        (
            ["delta", "--text-length", 12],
            r"period: two copies of 8 tokens and BOS are longer than text_length 12",
        ),
    ],
)
def test_bad_input_is_one_helpful_line(arguments: list[object], says: str, tmp_path: Path) -> None:
    assert re.search(says, one_line(neurons(*arguments, "--out", tmp_path / "out")))


@pytest.mark.usefixtures("project")
def test_no_texts_is_said(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n  \n")
    assert "holds no texts" in one_line(
        neurons("delta", "--texts", empty, "--out", tmp_path / "out")
    )


@pytest.mark.usefixtures("project")
def test_different_tokenizers_can_be_compared_when_asked_to(tmp_path: Path) -> None:
    said = neurons("compare", "--transformer", "other-tokens", "--own-tokens", "--out", tmp_path)
    assert said.code == 0
    assert report(tmp_path, "compare_tiny-mamba_other-tokens")["same_tokens"] is False


def test_a_model_whose_numbers_overflow_is_refused_before_it_is_measured(
    project: Path, tmp_path: Path
) -> None:
    from transformers import MambaForCausalLM

    module: Any = MambaForCausalLM.from_pretrained(project / "models" / "tiny-mamba")
    with torch.no_grad():
        module.backbone.layers[1].mixer.D.fill_(3e38)
        module.backbone.layers[1].mixer.in_proj.weight.mul_(1e4)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / name).write_bytes(
            (project / "models" / "tiny-mamba" / name).read_bytes()
        )
    module.save_pretrained(tmp_path / "broken")
    line = one_line(
        neurons("inter-layer", "--model", tmp_path / "broken", "--out", tmp_path / "out")
    )
    assert "broken: its predictions for a few tokens are not finite" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    program = f"""
import sys
from mamba_neurons.cli import main
main(["{command}", "--help"], standalone_mode=False)
assert not {{"torch", "matplotlib", "numpy"}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "--help" in done.stdout


def test_cross_layer_uses_the_causal_effects_of_the_same_settings(
    project: Path, tmp_path: Path
) -> None:
    assert neurons("causal", "--out", tmp_path).code == 0
    path = tmp_path / "causal_tiny-mamba.json"
    before = path.stat().st_mtime_ns
    assert neurons("cross-layer", "--out", tmp_path).code == 0
    assert path.stat().st_mtime_ns == before
    assert neurons("cross-layer", "--out", tmp_path, "--seed", 3).code == 0
    assert path.stat().st_mtime_ns != before
    top = load_arrays(tmp_path / "cross_layer_tiny-mamba.npz")["0/top"]
    kl = load_arrays(tmp_path / "causal_tiny-mamba.npz")["kl"]
    np.testing.assert_array_equal(top, np.argsort(-kl[0], kind="stable")[:3])
    json.loads(path.read_text())


def test_a_model_of_ones_own_brings_no_twin_and_its_run_ends_with_figures(
    project_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(project_folder, folder)
    shutil.rmtree(folder / "models" / "tiny-twin")
    monkeypatch.chdir(folder)
    mine = (folder / "models" / "deeper-mamba").rename(tmp_path / "mine")

    said = neurons("run", "--model", mine, "--text-limit", 4, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "compare is left out (--transformer)" in said.out
    plots = {file.name for file in (tmp_path / "out" / "plots").iterdir()}
    assert {"delta_mine.png", "ranked_effects_mine.png", "sparsity.png", "efficiency.png"} <= plots
