"""Every way in which a model can come, and every way in which one can be bad: one line that names
it and the mend.
"""

import ast
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import decoders
import small_models as small
from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256
from interp_core.loading import _check_size, load_model, random_like
from interp_core.models.native import NativeSubject
from interp_core.models.spec import ModelSpec, short_name, spec_of

ROOT = Path(__file__).parents[2]

REPO, REVISION = "EleutherAI/pythia-410m", "9879c9b5f8bea9051dcb0e68dff21493d67e9d4f"


def words(size: int) -> PreTrainedTokenizerFast:
    model = WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(model), bos_token="w0", eos_token="w0", pad_token="w0"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a good model and its tokenizer."""
    path = tmp_path / "toy"
    small.build("gpt_neox").save_pretrained(path)
    words(small.VOCAB).save_pretrained(path)
    return path


def one_line(problem: pytest.ExceptionInfo[InputError]) -> str:
    text = str(problem.value)
    assert "\n" not in text
    return text


def local(path: Path) -> ModelSpec:
    return ModelSpec(source="local", path=path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_directory_loads_with_the_weights_it_holds(folder: Path, dtype: str) -> None:
    subject = load_model(local(folder), name="toy", dtype=dtype)  # type: ignore[arg-type]
    assert isinstance(subject, NativeSubject)
    assert (subject.name, subject.bos) == ("toy", 0)
    assert subject.tokenizer is not None
    assert not subject.model.training
    for key, value in small.build("gpt_neox").state_dict().items():
        assert torch.equal(subject.model.state_dict()[key], value.to(getattr(torch, dtype)))


def test_the_hash_is_of_the_weights(folder: Path, tmp_path: Path) -> None:
    first = load_model(local(folder), name="a").hash
    assert load_model(local(folder), name="b").hash == first
    small.build("gpt_neox", seed=1).save_pretrained(tmp_path / "other")
    assert load_model(local(tmp_path / "other"), name="a").hash != first


def test_random_models_are_their_seed() -> None:
    config = {"model_type": "gpt_neox", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "intermediate_size": 32}
    hashes = [
        load_model(ModelSpec(source="random", config=config, seed=seed), name="r").hash
        for seed in (0, 0, 1)
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    with pytest.raises(InputError, match="model_type that transformers knows") as problem:
        load_model(ModelSpec(source="random", config={"model_type": "gpt_neo_y"}), name="r")
    one_line(problem)


def test_a_name_is_a_known_model_a_directory_or_a_hub_id(folder: Path) -> None:
    known = {"small": ModelSpec(source="random", config={})}
    assert spec_of("small", known) is known["small"]
    assert spec_of(str(folder), known) == local(folder)
    assert spec_of("a/b", known) == ModelSpec(source="hub", repo="a/b", revision="main")
    assert spec_of("a/b@step30", known) == ModelSpec(source="hub", repo="a/b", revision="step30")
    assert [short_name(name) for name in ("a/b@step30", "x/y/toy", "small")] == [
        "b",
        "toy",
        "small",
    ]
    with pytest.raises(InputError, match=r"unknown model smal: .* not one of small") as problem:
        spec_of("smal", known)
    one_line(problem)


# Paths hold the last part of the name, or all of it.
@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("owner/model@step30", "model"),
        ("owner/model-1.4b@step30", "model-1.4b"),
        ("owner/model", "model"),
        ("me@lab/m1", "m1"),
        ("/home/me@lab/m2", "m2"),
        ("runs/deep/m@home", "m@home"),
        ("../m@1", "m@1"),
        ("m@1", "m@1"),
    ],
)
def test_only_a_hub_id_has_a_revision(name: str, short: str) -> None:
    assert short_name(name) == short


def test_a_directory_that_could_be_a_hub_id_is_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("runs/m@1", "runs/m@2", "me@lab/m1"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert [short_name(name) for name in ("runs/m@1", "runs/m@2", "me@lab/m1")] == [
        "m@1",
        "m@2",
        "m1",
    ]
    assert spec_of("runs/m@1", {}).source == "local"

    monkeypatch.chdir(tmp_path / "runs" / "m@1")
    assert [short_name(name) for name in (".", "../m@2", "../../runs", "..")] == [
        "m@1",
        "m@2",
        "runs",
        "runs",
    ]


# Code of a model's own

CODE = """
from pathlib import Path
Path({ran!r}).touch()
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
class Config(GPTNeoXConfig): pass
class Model(GPTNeoXForCausalLM): pass
class Tokens(PreTrainedTokenizerFast): pass
"""
CLASSES = {
    "AutoConfig": "own.Config",
    "AutoModelForCausalLM": "own.Model",
    "AutoTokenizer": ["own.Tokens", "own.Tokens"],
}


def give_code(folder: Path, file: str, **changes: Any) -> Path:
    """Let a file of a model's folder name code of the folder's; the place that tells whether it
    ran.
    """
    ran = folder / "it_ran"
    (folder / "own.py").write_text(CODE.format(ran=str(ran)))
    content = json.loads((folder / file).read_text()) | {"auto_map": CLASSES} | changes
    (folder / file).write_text(json.dumps(content))
    return ran


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (
            "config.json",
            {"model_type": "mine"},
            "not a causal language model that can be loaded: it names code of its own",
        ),
        ("config.json", {"model_type": None}, "not a causal language model that can be loaded"),
        # Its tokenizer.json holds the whole tokenizer: it is read without the class that is named.
        ("tokenizer_config.json", {"tokenizer_class": "Tokens"}, None),
        ("config.json", {}, None),
        ("tokenizer_config.json", {}, None),
    ],
    ids=["unknown type", "no type", "unknown tokenizer", "known type", "known tokenizer"],
)
def test_code_of_a_model_is_never_run_and_nobody_is_asked(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    changes: dict[str, Any],
    said: str | None,
) -> None:
    ran = give_code(folder, file, **changes)
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules")
    )
    monkeypatch.setattr("sys.stdin", answers := io.StringIO("y\n" * 9))
    if said is None:
        subject = load_model(local(folder), name="toy")
        assert type(subject.model).__module__.startswith("transformers.models.")
        random_like(subject, seed=0)
    else:
        with pytest.raises(InputError) as problem:
            load_model(local(folder), name="toy")
        assert said in one_line(problem)
        assert str(folder) in one_line(problem)

    assert not ran.exists()
    assert answers.tell() == 0
    assert "[y/N]" not in capsys.readouterr().out


def test_every_loader_says_that_no_code_is_run() -> None:
    sources = [
        file
        for home in ("packages", "shared", "benchmarks")
        for file in sorted((ROOT / home).rglob("*.py"))
    ]
    calls = [
        (file, call)
        for file in sources
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr
        in ("from_pretrained", "from_config", "boot_transformers", "load_dataset", "pipeline")
    ]
    assert len(calls) >= 5
    for file, call in calls:
        said = [
            ast.unparse(word.value) for word in call.keywords if word.arg == "trust_remote_code"
        ]
        assert said == ["False"], f"{file}:{call.lineno}"


# Bad directories


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model directory .*nowhere$"):
        load_model(local(tmp_path / "nowhere"), name="x")
    with pytest.raises(InputError, match="dvc repro reference_models"):
        load_model(ModelSpec(source="trained", path=tmp_path / "nowhere"), name="x")


def test_a_directory_without_config_or_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"toy has no weights") as problem:
        load_model(local(folder), name="toy")
    one_line(problem)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config.json"):
        load_model(local(folder), name="toy")


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_truncated_weights_are_damaged(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(InputError, match="toy: the weights are damaged") as problem:
        load_model(local(folder), name="toy")
    one_line(problem)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_differs_from_the_record_of_training(folder: Path) -> None:
    weights = folder / "model.safetensors"
    (folder / "training.json").write_text(json.dumps({"weights_sha256": file_sha256(weights)}))
    load_model(local(folder), name="toy")
    flip_a_bit(weights)
    with pytest.raises(
        InputError, match=r"model.safetensors is damaged: its SHA-256 differs"
    ) as problem:
        load_model(local(folder), name="toy")
    one_line(problem)


def test_weights_that_lack_a_tensor_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["gpt_neox.layers.1.attention.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        InputError, match=r"lack 1 tensors of the architecture, gpt_neox.layers.1.attention.dense"
    ):
        load_model(local(folder), name="toy")


def causal(window: int = 64) -> torch.Tensor:
    """What old versions saved with each layer: who sees whom, in a context of 64."""
    seen = torch.ones(1, 1, 64, 64).tril()
    return seen - seen.tril(-window)


# What files of each type hold beside weights, as they lie on the hub.
OLD_MASKS = {
    "gpt2": {"h.{}.attn.bias": causal(), "h.{}.attn.masked_bias": torch.tensor(-1e4)},
    "gpt_neo": {
        "transformer.h.{}.attn.attention.bias": causal(8).bool(),
        "transformer.h.{}.attn.attention.masked_bias": torch.tensor(-1e9),
    },
    "gptj": {
        "transformer.h.{}.attn.bias": causal().bool(),
        "transformer.h.{}.attn.masked_bias": torch.tensor(-1e9),
    },
    "codegen": {"transformer.h.{}.attn.causal_mask": causal().to(torch.uint8)},
}


def holding(path: Path, kind: str, added: dict[str, torch.Tensor]) -> Path:
    """A directory with a model of the type whose file of weights holds more."""
    decoders.build(kind).save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    if kind == "gpt2":
        weights = {name.removeprefix("transformer."): value for name, value in weights.items()}
    for layer in range(decoders.LAYERS):
        weights |= {name.format(layer): value.clone() for name, value in added.items()}
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.mark.parametrize("kind", OLD_MASKS)
def test_masks_that_old_versions_saved_are_no_weights(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    held = load_model(holding(tmp_path / "old", kind, OLD_MASKS[kind]), bos=0)
    bare = load_model(holding(tmp_path / "new", kind, {}), bos=0)
    ids = torch.arange(20)[None]
    assert torch.equal(held.logits(ids), bare.logits(ids))
    assert "UNEXPECTED" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("legacy", [False, True])
def test_masks_in_a_bin_are_told_too(tmp_path: Path, legacy: bool) -> None:
    path = holding(tmp_path / "old", "gptj", OLD_MASKS["gptj"])
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(weights, path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    load_model(path, bos=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transformer.h.{}.attn.bias", torch.zeros(64)),
        ("transformer.h.{}.attn.bias", 0.5 * causal()),
        ("transformer.h.{}.attn.bias", causal().transpose(-1, -2)),
        ("transformer.h.{}.attn.masked_bias", torch.tensor(-0.5)),
        ("transformer.h.{}.attn.masked_bias", torch.full((3,), -1e9)),
        ("transformer.h.{}.attn.gate", causal()),
    ],
)
def test_what_is_no_mask_stays_surplus_and_is_refused_in_one_line(
    name: str, value: torch.Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = holding(tmp_path / "other", "gptj", {name: value.contiguous()})
    with pytest.raises(InputError, match="weights hold 3 tensors that the architecture") as problem:
        load_model(path, bos=0)
    one_line(problem)
    assert "UNEXPECTED" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        InputError,
        match=r"gpt_neox.layers.1.mlp.dense_4h_to_h.weight holds numbers that are not fin",
    ):
        load_model(local(folder), name="toy")


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"hidden_size": small.WIDTH * 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match="not a causal language model that can be loaded"
    ) as problem:
        load_model(local(folder), name="toy")
    one_line(problem)


@pytest.mark.parametrize(
    ("kind", "key"), [("mamba", "intermediate_size"), ("gpt_neox", "vocab_size")]
)
def test_sizes_out_of_all_proportion_to_the_weights_are_refused_before_anything_is_drawn(
    kind: str, key: str, tmp_path: Path
) -> None:
    small.build(kind).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: 64_000_000}))
    before = torch.random.get_rng_state()

    since = time.monotonic()
    with pytest.raises(InputError, match=r"config.json describes [\d,]+ weights, and") as problem:
        load_model(local(tmp_path), name="toy")
    assert time.monotonic() - since < 10
    assert "a size in it is wrong, or the files are cut or of another model" in one_line(problem)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("part", ["", "text_config"])
def test_layers_by_the_thousand_are_refused_before_they_are_built(folder: Path, part: str) -> None:
    layers = {"num_hidden_layers": 2**31}
    config = json.loads((folder / "config.json").read_text()) | ({part: layers} if part else layers)
    (folder / "config.json").write_text(json.dumps(config))

    told = r"config\.json: `num_hidden_layers` is 2,147,483,648, and 1,000 at most"
    with pytest.raises(InputError, match=told):
        load_model(local(folder), name="toy")


@pytest.mark.parametrize("kind", small.ALL | small.MAMBAS)
def test_a_model_s_sizes_are_looked_at_without_a_number_drawn(kind: str, tmp_path: Path) -> None:
    small.build(kind).save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    _check_size(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neo_y"}))
    with pytest.raises(
        InputError, match="not a causal language model that can be loaded"
    ) as problem:
        load_model(local(folder), name="toy")
    one_line(problem)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "training.json"])
def test_broken_json_is_named(folder: Path, file: str) -> None:
    (folder / file).write_text('{"model_type": ')
    with pytest.raises(InputError) as problem:
        load_model(local(folder), name="toy")
    assert str(folder) in one_line(problem)


def test_a_tokenizer_with_more_ids_than_the_model_does_not_fit(folder: Path) -> None:
    words(small.VOCAB + 1).save_pretrained(folder)
    with pytest.raises(
        InputError, match=f"the tokenizer has {small.VOCAB + 1} ids, the model embeds {small.VOCAB}"
    ):
        load_model(local(folder), name="toy")


def test_a_token_added_beyond_the_embedding_is_left_out(folder: Path) -> None:
    tokenizer = words(small.VOCAB)
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)

    subject = load_model(local(folder), name="toy")

    assert subject.tokenizer is not None
    beyond = subject.tokenizer.convert_tokens_to_ids("<image>")
    assert beyond == small.VOCAB
    with pytest.raises(InputError, match="outside its vocabulary"):
        subject.ids([[0, beyond]])


def as_bin(folder: Path) -> None:
    """The same weights in PyTorch's own format."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


def test_weights_in_a_bin_are_the_same_model_in_a_folder_and_in_a_hub_cache(
    folder: Path, tmp_path: Path
) -> None:
    before = load_model(local(folder), name="toy")
    as_bin(folder)
    after = load_model(local(folder), name="toy")
    ids = before.ids([[0, 5, 6, 7, 5]])
    assert torch.equal(before.logits(ids), after.logits(ids))

    seed_cache(tmp_path / "home", folder)
    ((said, _),) = load_in_fresh_process(tmp_path / "home", (REPO, REVISION))
    assert said == after.hash


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    model = small.build("gpt_neox")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    shard = sorted(folder.glob("model-*.safetensors"))[2]
    shard.unlink()

    with pytest.raises(InputError) as problem:
        load_model(local(folder), name="toy")
    assert one_line(problem).startswith(f"{shard} is missing, one of the ")


def test_an_index_that_is_none_is_named(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match="is no index of weight files"):
        load_model(local(folder), name="toy")


def test_gguf_is_told_how_to_be_converted(tmp_path: Path) -> None:
    file = tmp_path / "smol" / "smol.Q4_1.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")

    for path in (file, file.parent):
        with pytest.raises(InputError) as problem:
            load_model(local(path), name="toy")
        line = one_line(problem)
        assert line.startswith(f"{file} is GGUF; convert it")
        assert "gguf_file='smol.Q4_1.gguf'" in line
    assert spec_of(str(file), {}).path == file


def test_the_mamba_authors_format_is_told_of_its_twin(folder: Path) -> None:
    (folder / "config.json").write_text('{"d_model": 768, "n_layer": 24, "ssm_cfg": {}}')
    with pytest.raises(InputError) as problem:
        load_model(local(folder), name="toy")
    assert "mamba_ssm" in one_line(problem)
    assert "-hf" in one_line(problem)


@pytest.mark.parametrize("has_main", [True, False])
@pytest.mark.parametrize("above", [0, 1], ids=["snapshots", "repository"])
def test_a_repositorys_folder_in_a_hub_cache_stands_for_its_snapshot(
    folder: Path, tmp_path: Path, has_main: bool, above: int
) -> None:
    snapshot = seed_cache(tmp_path / "home", folder)
    if not has_main:
        shutil.rmtree(snapshot.parents[1] / "refs")

    given = local(snapshot.parents[above])
    assert load_model(given, name="toy").hash == load_model(local(folder), name="x").hash


def test_several_snapshots_without_a_main_are_asked_for(folder: Path, tmp_path: Path) -> None:
    repository = seed_cache(tmp_path / "home", folder).parents[1]
    shutil.rmtree(repository / "refs")
    shutil.copytree(repository / "snapshots" / REVISION, repository / "snapshots" / ("0" * 40))

    for given in (repository, repository / "snapshots"):
        with pytest.raises(InputError, match="holds 2 snapshots and no branch main"):
            load_model(local(given), name="toy")


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("gpt2", "openai-community/gpt2", "main"),
        ("pythia-160m@step3000", "EleutherAI/pythia-160m", "step3000"),
        ("pythia-1.4b-deduped", "EleutherAI/pythia-1.4b-deduped", "main"),
        ("mamba-130m-hf", "state-spaces/mamba-130m-hf", "main"),
    ],
)
def test_a_bare_name_is_its_owners_model(name: str, repo: str, revision: str) -> None:
    spec = spec_of(name, {})
    assert (spec.source, spec.repo, spec.revision) == ("hub", repo, revision)
    assert short_name(name) == repo.partition("/")[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="torch sees no CUDA device; use --device cpu"):
        load_model(local(tmp_path / "nowhere"), name="x", device="cuda")
    with pytest.raises(InputError, match="unknown device gpu"):
        load_model(local(tmp_path / "nowhere"), name="x", device="gpu")


def test_transformers_advice_is_not_given_where_it_does_not_apply() -> None:
    """In a process of its own: what is said once was perhaps said before."""
    program = """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        import small_models as small
        from interp_core.errors import InputError
        from interp_core.loading import subject_of

        # Padding is the token that begins prompts, as in most GPT-2s.
        subject = subject_of(small.build("gpt2", pad_token_id=0, eos_token_id=0), bos=0)
        subject.logits(torch.zeros(1, 5, dtype=torch.long))

        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        experts = {"num_experts": 1, "num_experts_per_tok": 1, "attn_layer_period": 2}
        mixers = {"mamba_d_state": 4, "mamba_dt_rank": 2, "intermediate_size": 64}
        config = AutoConfig.for_model(
            "jamba", vocab_size=96, num_key_value_heads=2, attn_layer_offset=1,
            **sizes, **experts, **mixers
        )
        try:
            subject_of(AutoModelForCausalLM.from_config(config), bos=0)
        except InputError as problem:
            print(problem)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        command, env={**os.environ, **paths}, capture_output=True, text=True, check=True
    )
    assert "jamba cannot be studied here" in done.stdout
    assert done.stderr == ""


# The hub


def seed_cache(home: Path, files: Path, repo: str = REPO) -> Path:
    """Put the files of a directory into a hub cache under a repo at REVISION, large ones under
    their SHA-256.
    """
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / REVISION
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (root / "refs" / "main").write_text(REVISION)
    for file in files.iterdir():
        content = file.read_bytes()
        name = (hashlib.sha256 if file.suffix == ".safetensors" else hashlib.sha1)(
            content
        ).hexdigest()
        (root / "blobs" / name).write_bytes(content)
        (snapshot / file.name).symlink_to(Path("../../blobs") / name)
    return snapshot


def load_in_fresh_process(home: Path, *models: tuple[str, str]) -> list[tuple[str, float]]:
    """What load_model says of each (repo, revision) where nothing answers: the hash, or its
    InputError; and the seconds it took. A fresh process, because huggingface_hub reads its
    environment once.
    """
    program = f"""
        import time, transformers, huggingface_hub.hf_api
        from interp_core.errors import InputError
        from interp_core.loading import load_model
        from interp_core.models.spec import ModelSpec
        for repo, revision in {models!r}:
            start = time.monotonic()
            try:
                spec = ModelSpec(source="hub", repo=repo, revision=revision)
                said = load_model(spec, name="x").hash
            except InputError as problem:
                said = f"InputError: {{problem}}"
            print("said", said, time.monotonic() - start, sep="|")
    """
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGINGFACE"))
    }
    environment |= {
        "HF_HOME": str(home),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [line.split("|") for line in done.stdout.splitlines() if line.startswith("said|")]
    return [(said, float(seconds)) for _, said, seconds in answers]


def assert_names_three_ways_out(said: str, seconds: float, repo: str = REPO) -> None:
    for part in (repo, REVISION, "(1)", "(2)", "(3)", "cannot be reached"):
        assert part in said
    assert "\n" not in said
    assert seconds < 5


def test_without_a_hub_the_cache_is_all_there_is(folder: Path, tmp_path: Path) -> None:
    expected = load_model(local(folder), name="x").hash
    seed_cache(tmp_path / "home", folder)
    flip_a_bit(
        (seed_cache(tmp_path / "home", folder, "lab/flipped") / "model.safetensors").resolve()
    )
    (folder / "model.safetensors").unlink()
    seed_cache(tmp_path / "home", folder, "lab/tokenizer-only")
    repos = [(REPO, REVISION), (REPO, "main")]
    repos += [(f"lab/{name}", REVISION) for name in ("flipped", "tokenizer-only", "absent")]
    pinned, main, flipped, tokenizer_only, absent = load_in_fresh_process(tmp_path / "home", *repos)
    assert pinned[0] == main[0] == expected
    assert "model.safetensors is damaged: its SHA-256 is not" in flipped[0]
    assert_names_three_ways_out(*tokenizer_only, repo="lab/tokenizer-only")
    assert_names_three_ways_out(*absent, repo="lab/absent")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("kind", ["no such host", "never answers"])
def test_an_unreachable_hub_is_said_within_five_seconds(
    kind: str, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = silent_server if kind == "never answers" else "http://no-such-host.invalid"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    start = time.monotonic()
    with pytest.raises(InputError) as problem:
        load_model(ModelSpec(source="hub", repo=REPO, revision=REVISION), name="x")
    assert_names_three_ways_out(one_line(problem), time.monotonic() - start)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    ("code", "says"), [("RepoNotFound", "the hub refused"), ("RevisionNotFound", "no revision")]
)
def test_a_hub_that_refuses_is_told_apart_from_one_that_is_not_there(
    code: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """No line on standard error."""

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}"
        )
        with pytest.raises(InputError, match=says) as problem:
            load_model(ModelSpec(source="hub", repo=REPO, revision=REVISION), name="x")
        server.shutdown()
    assert REPO in one_line(problem)
    assert REVISION in one_line(problem)


def test_a_bin_that_would_run_code_is_not_read(folder: Path, tmp_path: Path) -> None:
    class Touches:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"gpt_neox.embed_in.weight": Touches()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError) as problem:
        load_model(local(folder), name="toy")
    assert "holds more than tensors" in one_line(problem)
    assert "weights_only" not in one_line(problem)
    assert not (tmp_path / "ran").exists()


def test_a_directory_may_be_given_as_it_is_typed(folder: Path) -> None:
    typed = load_model(str(folder))
    assert typed.name == folder.name
    assert typed.hash == load_model(local(folder), name="toy").hash
    with pytest.raises(InputError, match=r"unknown model \./no: not a directory, not a hub id"):
        load_model("./no")


@pytest.mark.parametrize(
    ("device_map", "says"),
    [
        ("evenly", "unknown device_map evenly: one of auto, balanced"),
        ({"": "gpu"}, "unknown device gpu"),
        ({"gpt_neox": "cpu", "lm_head": "cpu", "head": "cpu"}, "device_map names head"),
        pytest.param(
            {"": 0},
            "torch sees no CUDA device",
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason="there is a CUDA device here"
            ),
        ),
    ],
)
def test_a_device_map_that_does_not_fit_is_refused(
    folder: Path, device_map: Any, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        load_model(local(folder), name="toy", device_map=device_map)
