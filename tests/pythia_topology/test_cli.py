"""`induct` as a user has it: options, files, and one helpful line where something is wrong."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import decoders
import small_project
from interp_core.files.artifacts import file_sha256, load_arrays, load_json
from small_project import Said, induct

PROGRAM = Path(sys.executable).with_name("induct")
LAYERS, HEADS = 2, 4
N, PAIRED_LAGS = small_project.SETTINGS["n_sequences"], [1, 2, 4, 8]


def one_line(said: Said) -> str:
    """The only line on standard error of a command that refused."""
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err.strip()


def assert_nothing_half_written(out: Path) -> None:
    """What a folder holds is whole."""
    for file in out.rglob("*"):
        assert ".part" not in file.name
        assert not file.name.startswith(".")
        if file.suffix == ".npz":
            load_arrays(file)
        if file.suffix == ".json":
            load_json(file)
        if file.suffix == ".png":
            Image.open(file).verify()


@pytest.fixture(scope="module")
def profiled(random_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `induct profile --model toy --out OUT` writes."""
    out = tmp_path_factory.mktemp("profiled") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(random_project)
        said = induct("profile", "--model", "toy", "--out", out)
    assert said.code == 0
    assert said.err == ""
    assert said.out.startswith("toy: ")
    return out


# Options

OPTIONS_OF_THE_SEED = {
    "models": ["toy", "taller"],
    "device": ["cpu"],
    "dtype": ["float32"],
    "seq_len": [44],
    "n_sequences": [9],
    "lag_values": [1, 3, 5],
    "task_types": ["ABAB", "NAMES"],
    "high_score_quantile": [0.8],
    "bootstrap_resamples": [120],
    "causal_top_k": [2],
    "causal_random_k": [2],
    "topk": [2],
    "memory_saver": [],
    "print_prompts": [],
}


def spelled(spelling: str) -> list[object]:
    names = {
        name: name.replace("_", "-") if spelling == "dashes" else name
        for name in OPTIONS_OF_THE_SEED
    }
    return [
        word
        for name, values in OPTIONS_OF_THE_SEED.items()
        for word in (f"--{names[name]}", *values)
    ]


@pytest.mark.usefixtures("project")
def test_every_option_of_the_seed_is_taken_with_underscores_and_with_dashes(tmp_path: Path) -> None:
    said = {
        how: induct("profile", "--out", tmp_path, *spelled(how))
        for how in ("underscores", "dashes")
    }
    assert said["underscores"] == said["dashes"]
    assert said["dashes"].code == 0
    lines = said["dashes"].out.splitlines()
    families = ["repeated_tokens"] * 2 + ["spaced_pairs"] * 2 + ["names"] * 2
    starts = [re.match(r"(\w+) (\w+): ['\"]<\|endoftext\|>", line) for line in lines]
    found = [match.groups() for match in starts if match]
    assert found == [(model, family) for model in ("toy", "taller") for family in families]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("project")
def test_printed_prompts_follow_the_options_and_are_those_of_the_tokenizer() -> None:
    printed = {
        options: induct("profile", "--model", "toy", "--print_prompts", *options).out
        for options in ((), ("--seed", 1), ("--period", 12))
    }
    assert len(set(printed.values())) == 3
    assert not Path("outputs").exists()
    other = induct("profile", "--model", "taller", "--print_prompts").out
    assert other.replace("taller", "toy") == printed[()]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--models", "toy", "taller"],
        ["--models=toy", "taller"],
        ["--models", "toy", "--models", "taller"],
        ["--models", "toy", "--model", "taller"],
    ],
)
def test_several_models_may_stand_in_a_row(arguments: list[str]) -> None:
    said = induct("profile", *arguments, "--print_prompts", "--task_types", "spaced_pairs")
    assert [line.split()[0] for line in said.out.splitlines()] == ["toy"] * 4 + ["taller"] * 4


def test_a_model_is_a_name_a_directory_or_a_hub_id(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    small_project.seed_hub(tmp_path, "lab/toy", "main", project / "models" / "toy")
    small_project.seed_hub(tmp_path, "lab/toy", "step8", project / "models" / "toy")
    names = ["toy", project / "models" / "toy", "lab/toy", "lab/toy@step8"]
    said = [
        induct("profile", "--model", name, "--print_prompts", "--task_types", "names")
        for name in names
    ]
    assert said[0].code == 0
    assert said == [said[0]] * 4


def modules_after(arguments: list[str]) -> set[str]:
    program = f"""
        import sys
        from pythia_topology.cli import main
        main({arguments!r}, standalone_mode=False)
        print(*sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("arguments", [["--help"], ["profile", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"torch", "transformers", "numpy", "scipy", "matplotlib", "tokenizers"}
    reads = {"pydantic", "yaml"}  # a command's help says each setting's value in the profile
    heavy |= set() if len(arguments) > 1 else reads
    assert not heavy & modules_after(arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["causal", "--help"]])
def test_help_takes_less_than_three_tenths_of_a_second(arguments: list[str]) -> None:
    """Of the processor: what else the machine does is not ours."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [PROGRAM, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stdout.startswith("Usage: induct")
    assert min(spent) < 0.3


# Files


def names_of_arrays(families: list[str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of scores_<name>.npz as other programs read them."""
    with_interval = [
        "prefix_matching",
        "excess_prefix_matching",
        "duplicate_token",
        "previous_token",
    ]
    heads = [f"{name}{end}" for name in with_interval for end in ("", "_low", "_high")]
    heads += ["bos", "copying_empirical", "direct_logit_attribution"]
    shapes: dict[str, tuple[int, ...]] = {"copying": (LAYERS, HEADS)}
    shapes |= {
        "untrained/excess_prefix_matching": (N, LAYERS, HEADS),
        "prompts/spaced_pairs/lag": (N,),
    }
    for family in families:
        prefix = "" if family == "repeated_tokens" else f"{family}/"
        shapes |= {f"{prefix}{name}": (LAYERS, HEADS) for name in heads}
        per_prompt = [
            "prefix_matching",
            "prefix_matching_control",
            "duplicate_token",
            "previous_token",
            "bos",
        ]
        per_prompt += ["copying_empirical", "direct_logit_attribution"]
        shapes |= {f"prompts/{family}/{name}": (N, LAYERS, HEADS) for name in per_prompt}
        shapes |= {f"prompts/{family}/shuffled": (2, N, LAYERS, HEADS)}
        behaviour = ["accuracy", "loss", "control_accuracy", "control_loss"]
        shapes |= {f"prompts/{family}/{name}": (N,) for name in behaviour}
    return shapes


def test_profile_writes_the_files_of_the_contract_and_no_others(profiled: Path) -> None:
    assert sorted(file.name for file in profiled.iterdir()) == [
        "heatmap_toy.png",
        "induction-lab.sha256",
        "profile_toy.json",
        "profile_toy.png",
        "scores_toy.npz",
    ]
    assert_nothing_half_written(profiled)
    for file in profiled.glob("*.png"):
        assert min(Image.open(file).size) > 300


def test_scores_have_the_names_and_shapes_of_the_contract(profiled: Path) -> None:
    arrays = load_arrays(profiled / "scores_toy.npz")
    expected = names_of_arrays(["repeated_tokens", "spaced_pairs", "names", "natural_repeats"])
    assert {name: array.shape for name, array in arrays.items()} == expected
    lags = arrays.pop("prompts/spaced_pairs/lag")
    assert lags.dtype.kind == "i"
    assert set(lags) == set(PAIRED_LAGS)
    for name, array in arrays.items():
        assert array.dtype == np.float32, name
        assert np.isfinite(array).all(), name
    for name in ("prefix_matching", "excess_prefix_matching", "names/duplicate_token"):
        assert (arrays[f"{name}_low"] <= arrays[name]).all()
        assert (arrays[name] <= arrays[f"{name}_high"]).all()


def test_the_profile_has_the_keys_of_the_contract(profiled: Path) -> None:
    report = load_json(profiled / "profile_toy.json")
    wanted = {
        "mode",
        "q",
        "per_layer",
        "peak_layer",
        "peak_rel",
        "bandwidth",
        "n",
        "seed",
        "model_hash",
    }
    assert wanted | {"prompts_hash", "n_induction_heads", "verdict"} <= set(report)
    assert (report["n"], report["seed"], len(report["per_layer"])) == (N, 0, LAYERS)
    assert (report["n_induction_heads"], report["verdict"]) == (0, "no induction heads")
    assert report["peak_layer"] is report["peak_rel"] is report["bandwidth"] is None
    assert all(
        re.fullmatch("[0-9a-f]{64}", report[name]) for name in ("model_hash", "prompts_hash")
    )


def test_the_installed_program_writes_the_same_bytes(
    project: Path, profiled: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [PROGRAM, "profile", "--model", "toy", "--out", tmp_path / "out", "--memory_saver"],
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "loading toy ...\n")
    for file in profiled.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


# Measured once


def measured_at(out: Path) -> int:
    return (out / "scores_toy.npz").stat().st_mtime_ns


@pytest.fixture
def own(profiled: Path, tmp_path: Path) -> Path:
    """A copy of the profiled folder."""
    return Path(shutil.copytree(profiled, tmp_path / "own"))


@pytest.mark.usefixtures("project")
def test_scores_that_are_there_are_not_measured_again(own: Path) -> None:
    before = measured_at(own)
    assert "measured before" in induct("profile", "--model", "toy", "--out", own).out
    for command, options in (
        ("nulls", []),
        ("lagbuckets", ["--split_lag", 1]),
        ("composition", ["--topk", 1]),
    ):
        assert induct(command, "--model", "toy", "--out", own, *options).code == 0
    assert measured_at(own) == before
    assert {"nulls_toy.json", "lags_toy.json", "composition_toy.json"} <= {
        file.name for file in own.iterdir()
    }


@pytest.mark.usefixtures("project")
def test_another_setting_is_measured_anew(own: Path) -> None:
    before = measured_at(own)
    assert induct("nulls", "--model", "toy", "--out", own, "--seed", 1).code == 0
    assert measured_at(own) > before
    assert (
        load_json(own / "profile_toy.json")["seed"]
        == load_json(own / "nulls_toy.json")["seed"]
        == 1
    )


@pytest.mark.parametrize("changed", ["weights", "tokenizer", "corpus"])
def test_other_weights_or_other_text_are_measured_anew(
    changed: str, random_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Path(shutil.copytree(random_project, tmp_path / "project"))
    monkeypatch.chdir(project)
    command = ["nulls", "--model", "toy", "--out", "out", "--task_types", "names"]
    assert induct(*command).code == 0
    before = measured_at(Path("out"))
    assert induct(*command).code == 0
    assert measured_at(Path("out")) == before
    model = project / "models" / "toy"
    if changed == "weights":
        small_project.random_model(layers=2, seed=7).save_pretrained(model)
    elif changed == "tokenizer":
        config = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 64}))
    else:
        with np.load(project / "data" / "corpus" / "tokens.npz") as arrays:
            content = {name: arrays[name] for name in arrays.files}
        content["counts"] = content["counts"][::-1]
        np.savez(project / "data" / "corpus" / "tokens.npz", **content)  # pyright: ignore[reportArgumentType]
        (project / "data" / "corpus" / "corpus.json").unlink()  # it knows the sums of the other
    assert induct(*command).code == 0
    assert measured_at(Path("out")) > before


@pytest.mark.usefixtures("project")
def test_an_old_record_never_vouches_for_new_scores(own: Path) -> None:
    """Scores of other settings were written, and then the disk was full: the old settings measure
    again.
    """
    full = own / f".profile_toy.{os.getpid()}.part.json"
    full.symlink_to("/dev/full")
    assert "No space left" in one_line(
        induct("profile", "--model", "toy", "--out", own, "--seed", 3)
    )
    before = measured_at(own)
    assert induct("nulls", "--model", "toy", "--out", own).code == 0
    assert measured_at(own) > before


# Bad input


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["profile", "--model", "nope"],
            "unknown model nope: not a directory, .* not one of taller, toy",
        ),
        (["profile", "--model", "./nope"], "unknown model ./nope"),
        (["profile", "--model", "../nope"], "unknown model ../nope"),
        (["profile", "--model", "a--b/c"], "unknown model a--b/c"),
        (["profile", "--model", "models"], "models has no config.json"),
        (
            ["profile", "--models", "toy", "models/toy"],
            "two models would write files of the name toy",
        ),
        (
            ["profile", "--model", "toy", "--seq_len", "65"],
            r"prompts of 65 tokens .* longer than its context, 64",
        ),
        (
            ["profile", "--model", "toy", "--period", "32"],
            r"prompts of 65 tokens .* longer than its context, 64",
        ),
        (
            ["profile", "--model", "toy", "--lag_values", "1", "37"],
            "lag 37 is longer than the sequence.* seq_len 41",
        ),
        (
            ["profile", "--model", "toy", "--high_score_quantile", "1"],
            "--high-score-quantile: .*less than 1, got '1.0'",
        ),
        (
            ["profile", "--model", "toy", "--high-score-quantile", "0"],
            "--high-score-quantile: .*greater than 0",
        ),
        (["profile", "--model", "toy", "--high-score-quantile", "x"], "'x' is not a valid float"),
        (
            ["profile", "--model", "toy", "--dtype", "float16"],
            "--dtype: .*'float32', 'bfloat16' or 'float64'",
        ),
        (["profile", "--model", "toy", "--device", "gpu"], "unknown device gpu: cpu, cuda"),
        (
            ["profile", "--model", "toy", "--task_types", "ABAC"],
            "--task-types: .*'natural_repeats', got 'ABAC'",
        ),
        (
            ["profile", "--model", "toy", "--profile_mode", "max"],
            "--profile-mode: .*'top_quantile' or 'count'",
        ),
        (
            ["profile", "--model", "toy", "--n_sequences", "2"],
            "--n-sequences: .*equal to 8, got '2'",
        ),
        (["profile", "--modle", "toy"], "No such option.*--model.*see .* profile --help"),
        (["profil"], "No such command 'profil'"),
        (["profile", "--profile", "nope"], "no profile .*nope.yaml; known here: tests"),
        (
            ["causal", "--model", "toy", "--topk", "9"],
            r"\(--topk\) is 9, but the model has 8 heads",
        ),
        (
            ["causal", "--model", "toy", "--causal_random_k", "9"],
            "causal_random_k is 9, but the model has 8 heads",
        ),
        (
            ["causal", "--model", "toy", "--topk", "8"],
            "8 top and 1 random heads are more than its 8",
        ),
        (
            ["crosssize", "--model", "toy"],
            "crosssize compares two models, got 1; multisize takes any number",
        ),
        (
            ["lagbuckets", "--model", "toy", "--task_types", "names"],
            "needs the family spaced_pairs",
        ),
        (["emergence", "--model", "toy"], "at least 4 training checkpoints of .*holds no step-"),
        (["crosssize"], "scores_toy.npz is missing: run the command that writes it first"),
        (["figures"], "scores_toy.npz is missing"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_half_written(
    arguments: list[str], says: str, tmp_path: Path
) -> None:
    bare = len(arguments) == 1
    said = induct(*arguments, *([] if bare else ["--out", tmp_path / "out"]))
    assert re.search(says, one_line(said))
    assert_nothing_half_written(tmp_path)
    if (
        arguments[0] != "causal"
    ):  # whose scores are measured before the model is asked for its heads
        assert not list(tmp_path.rglob("*.*"))


def unload(model: Path) -> None:
    (model / "model.safetensors").unlink()


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def flip_a_bit(model: Path) -> None:
    weights = model / "model.safetensors"
    (model / "training.json").write_text(json.dumps({"weights_sha256": file_sha256(weights)}))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def misfit(model: Path) -> None:
    small_project.random_model(layers=2, seed=0, vocab=400).save_pretrained(model)


def spoil(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["gpt_neox.layers.1.mlp.dense_h_to_4h.bias"][0] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("breakage", "says"),
    [
        (unload, "has no weights"),
        (truncate, "the weights are damaged"),
        (flip_a_bit, "damaged: its SHA-256 differs from training.json's; train it again"),
        (misfit, "the tokenizer has 512 ids, the model embeds 400"),
        (spoil, "layers.1.mlp.dense_h_to_4h.bias holds numbers that are not finite"),
    ],
)
def test_a_bad_model_is_named(
    breakage: Callable[[Path], None], says: str, project: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(project / "models" / "toy", tmp_path / "mine"))
    breakage(model)
    line = one_line(induct("profile", "--model", model, "--out", tmp_path / "out"))
    assert says in line
    assert "mine" in line
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.usefixtures("project")
def test_an_unreachable_hub_names_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    line = one_line(induct("profile", "--model", "lab/absent", "--out", tmp_path / "out"))
    assert re.search(r"lab/absent at revision main .*\(1\).*\(2\).*\(3\)", line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"perid": 3}, r"mine.yaml: pythia_topology: unknown key `perid`; did you mean `period`\?"),
        (
            {"period": "twenty"},
            r"mine.yaml: pythia_topology: `period`: .*valid integer.* got 'twenty'",
        ),
        ({"lag_values": [1, "x"]}, r"mine.yaml: pythia_topology: `lag_values.1`: .*got 'x'"),
        (
            {"null_level": 0.001, "n_sequences": 11},
            "n_sequences: 11 prompts are too few .* use at least 12",
        ),
        (
            {"null_level": 0.0001, "n_sequences": 99},
            "permutation_draws: 1000 draws cannot .* use at least 9999",
        ),
        (
            {"high_score_quantile": 1.5},
            r"mine.yaml: pythia_topology: `high_score_quantile`: .*less than 1",
        ),
    ],
)
def test_a_bad_profile_names_file_key_and_mend(
    change: dict[str, object], says: str, project: Path, tmp_path: Path
) -> None:
    small_project.write_profile(tmp_path, {}, **change)
    mine = (tmp_path / "profiles" / "tests.yaml").rename(tmp_path / "mine.yaml")
    line = one_line(induct("profile", "--profile", mine, "--model", project / "models" / "toy"))
    assert re.search(says, line)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: {}\n", "mine.yaml: has no section `pythia_topology`"),
        (
            "pythia_topolgy: {}\n",
            "has no section `pythia_topology`; did you mean `pythia_topolgy`?",
        ),
        ("pythia_topology:\n", "section `pythia_topology` holds no keys"),
        ("pythia_topology: {}\n", "`models`: Field required"),
        ("pythia_topology: [1\n", "mine.yaml: not valid YAML"),
        ("", "mine.yaml: holds no sections"),
    ],
)
def test_a_profile_without_its_section_is_named(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert says in one_line(induct("profile", "--profile", tmp_path / "mine.yaml"))


def test_a_project_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("interp_core.files.params.__file__", str(tmp_path / "params.py"))
    assert "run inside the project's folder" in one_line(induct("profile", "--model", "toy"))


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("out", ["/proc/nothing", "params.yaml", "params.yaml/deeper", "/dev/null"])
def test_a_folder_that_cannot_be_written_is_found_before_anything_is_computed(out: str) -> None:
    line = one_line(induct("profile", "--model", "toy", "--out", out))
    assert out in line


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["scores_toy.npz", "profile_toy.json", "heatmap_toy.png"])
def test_a_disk_that_fills_up_leaves_whole_files_only(name: str, tmp_path: Path) -> None:
    """Every write to /dev/full fails as on a full disk; here it stands where the temporary file
    will.
    """
    stem, suffix = name.split(".")
    (tmp_path / f".{stem}.{os.getpid()}.part.{suffix}").symlink_to("/dev/full")
    line = one_line(
        induct("profile", "--model", "toy", "--out", tmp_path, "--task_types", "spaced_pairs")
    )
    assert line == f"error: cannot write {tmp_path / name}: No space left on device"
    assert not (tmp_path / name).exists()
    assert_nothing_half_written(tmp_path)


def test_ctrl_c_is_one_line_and_leaves_whole_files_only(project: Path, tmp_path: Path) -> None:
    """The first model is whole, the second is interrupted, and the same command goes on with the
    second.
    """
    program = """
        import signal, sys
        from pythia_topology import cli, measure_heads
        # Jobs in the background inherit that it is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        score = measure_heads.score_heads
        def announced(subject, *arguments, **options):
            if subject.name == "taller":
                print("measuring", flush=True)
                options["batch_size"] = 1
                arguments = (arguments[0].repeat(3000, axis=0), *arguments[1:])
            return score(subject, *arguments, **options)
        if "--stop" in sys.argv:
            sys.argv.remove("--stop")
            measure_heads.score_heads = announced
        cli.main()
    """
    arguments = [
        "profile",
        "--models",
        "toy",
        "taller",
        "--out",
        str(tmp_path),
        "--task_types",
        "spaced_pairs",
    ]
    start = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    with subprocess.Popen(
        [*start, "--stop"], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert any(line == "measuring\n" for line in running.stdout)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
        (line,) = running.stderr.read().splitlines()
    assert line == "interrupted"  # nothing is saved of a model before it is whole
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "induction-lab.sha256",
        "profile_toy.json",
        "scores_toy.npz",
    ]
    assert_nothing_half_written(tmp_path)
    said = induct(*arguments)
    assert said.code == 0
    assert [line.split(",")[0] for line in said.out.splitlines()] == [
        "toy: measured before",
        "taller: prompts begin with <|endoftext|> (id 0)",
        "taller: no induction heads: no head stands out of the null",
    ]


# What prompts begin with


def test_what_prompts_begin_with_is_said_and_recorded(
    random_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(random_project)
    found = {}
    for bos, words in (("none", "nothing"), ("7", "(id 7)")):
        said = induct("profile", "--model", "toy", "--bos", bos, "--out", tmp_path / bos)
        assert said.code == 0, said.err
        assert f"{words}\n" in said.out
        report = load_json(tmp_path / bos / "profile_toy.json")
        assert report["prompts_begin_with"].endswith(words)
        found[bos] = report["prompts_hash"]
    assert found["none"] != found["7"]


def test_a_bos_that_is_no_token_is_refused(
    random_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(random_project)
    said = induct("profile", "--model", "toy", "--bos", "<nowhere>", "--out", tmp_path)
    assert "'<nowhere>' is no token of its tokenizer" in one_line(said)


@pytest.mark.usefixtures("project")
def test_composition_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    """Where a norm stands behind queries and keys."""
    model = tmp_path / "normed"
    decoders.build("qwen3").save_pretrained(model)
    said = induct("composition", "--model", model, "--out", tmp_path / "out")
    assert said.code == 2
    assert "a norm stands behind its queries and keys" in one_line(said)
    assert not list((tmp_path / "out").rglob("scores_*"))


@pytest.mark.parametrize(
    ("name", "is_early"),
    [("profile_toy.json", True), ("scores_toy.npz", True), ("heatmap_toy.png", False)],
)
def test_a_file_of_somebody_elses_is_not_replaced(
    name: str,
    is_early: bool,
    random_project: Path,
    profiled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a record would be it is seen before anything is measured."""
    assert (profiled / name).is_file()
    monkeypatch.chdir(random_project)
    mine = tmp_path / name
    mine.write_text("years of work")

    said = one_line(induct("profile", "--model", "toy", "--out", tmp_path))
    assert f"{mine} is there, and no record of this program lists it, so it stays" in said
    assert mine.read_text() == "years of work"
    if is_early:
        assert list(tmp_path.iterdir()) == [mine]
