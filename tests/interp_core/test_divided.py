"""A model that is divided says what it says in one piece: over memory and disk, over two devices
that refuse each other's tensors, and over two GPUs where there are two.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model

import decoders
import small_models as small
import two_devices
from divided_models import halves, measured
from interp_core.errors import InputError
from interp_core.loading import load_model, random_like, subject_of
from interp_core.models.divided import device_map_of
from interp_core.models.hooks import capture, intervene, zero
from interp_core.models.lens import to_transformer_lens
from interp_core.models.native import NativeSubject
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import as_transformer

KINDS = ("gpt_neox", "gpt2", "llama", "gemma2", "olmo2", "qwen3")
EQUAL: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-6}


def saved(kind: str, folder: Path) -> ModelSpec:
    decoders.build(kind).save_pretrained(folder)
    return ModelSpec(source="local", path=folder)


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [*((kind, "cpu", "disk") for kind in KINDS), ("llama", "disk", "cpu")],
)
def test_what_lies_half_on_disk_is_measured_as_in_one_piece(
    kind: str, first: str, second: str, tmp_path: Path
) -> None:
    spec = saved(kind, tmp_path)
    whole = load_model(spec, name=kind, bos=0)
    device_map = halves(whole.model, first, second)
    divided = load_model(spec, name=kind, bos=0, device_map=device_map)

    assert isinstance(divided, NativeSubject)
    assert any(parameter.is_meta for parameter in divided.model.parameters())
    assert divided.hash == whole.hash
    expected, found = measured(whole), measured(divided)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.allclose(found[name], values, **EQUAL), name


@pytest.mark.parametrize("kind", ["gpt_neox", "llama", "gemma2"])
def test_no_number_is_made_of_two_devices(kind: str) -> None:
    """In a process of its own: a device that torch once knew cannot be forgotten."""
    command = [sys.executable, two_devices.__file__, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["twin:0", "cpu"]


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees no two CUDA devices here")
@pytest.mark.parametrize("kind", KINDS)
def test_two_gpus_say_what_one_says(kind: str) -> None:
    torch.nn.Module.to(whole := decoders.build(kind), torch.device("cuda:0"))
    divided: Any = dispatch_model(model := decoders.build(kind), halves(model, 0, 1))

    expected, found = (measured(subject_of(one, bos=0)) for one in (whole, divided))
    for name, values in expected.items():
        assert np.allclose(found[name], values, atol=1e-4, rtol=1e-4), name


def test_how_devices_are_filled_may_stand_for_a_device(tmp_path: Path) -> None:
    spec = saved("llama", tmp_path)
    whole, filled = (load_model(spec, name="x", bos=0, device=to) for to in ("cpu", "auto"))
    ids = small.prompts().tokens
    assert torch.allclose(filled.logits(filled.ids(ids)), whole.logits(whole.ids(ids)), **EQUAL)


def test_what_is_read_and_edited_of_a_divided_model_is_there_and_is_used(tmp_path: Path) -> None:
    spec = saved("llama", tmp_path)
    whole = load_model(spec, name="x", bos=0)
    divided = load_model(spec, name="x", bos=0, device_map=halves(whole.model, "cpu", "disk"))
    seen, logits = {}, {}
    for subject in (whole, divided):
        ids = subject.ids(small.prompts().tokens)
        sites = ["blocks.1.attn.z", "blocks.1.attn.pattern", "blocks.2.resid_pre"]
        edits = {"blocks.1.attn.z": zero(heads=[0]), "blocks.1.mlp_out": lambda x: 2 * x}
        with capture(subject, sites) as seen[subject], intervene(subject, edits):
            logits[subject] = subject.logits(ids)
    assert torch.allclose(logits[divided], logits[whole], **EQUAL)
    for site, values in seen[whole].items():
        assert torch.allclose(seen[divided][site], values, **EQUAL), site


def test_weights_on_disk_are_what_circuits_and_the_untrained_null_are_made_from(
    tmp_path: Path,
) -> None:
    spec = saved("llama", tmp_path)
    whole = as_transformer(load_model(spec, name="x", bos=0))
    device_map = halves(whole.model, "cpu", "disk")
    divided = as_transformer(load_model(spec, name="x", bos=0, device_map=device_map))
    for ours, theirs in zip(
        vars(divided.head_weights(1)).values(), vars(whole.head_weights(1)).values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert torch.equal(divided.embedding(), whole.embedding())
    assert torch.equal(divided.unembedding(), whole.unembedding())

    untrained, expected = random_like(divided, seed=3), random_like(whole, seed=3)
    assert device_map_of(untrained.model) == device_map_of(divided.model)
    assert untrained.hash == expected.hash


@pytest.mark.parametrize(
    ("kind", "says"),
    [("bloom", "runs through TransformerLens, in one piece"), ("mamba", "is not divided")],
)
def test_a_type_that_cannot_be_divided_is_refused_in_one_line(kind: str, says: str) -> None:
    model = small.build(kind)
    divided: Any = dispatch_model(model, {"": "cpu"}, force_hooks=True)
    with pytest.raises(InputError, match=says):
        subject_of(divided, bos=0)


def test_transformer_lens_is_not_given_half_a_model(tmp_path: Path) -> None:
    spec = saved("llama", tmp_path)
    device_map = halves(decoders.build("llama"), "cpu", "disk")
    divided = load_model(spec, name="x", bos=0, device_map=device_map)
    with pytest.raises(InputError, match="runs a model in one piece, not divided"):
        to_transformer_lens(divided)


def test_one_tensor_under_two_names_is_not_torn_apart(tmp_path: Path) -> None:
    spec = saved("gpt2", tmp_path)
    device_map = {"transformer": "cpu", "lm_head": "disk"}
    with pytest.raises(InputError, match=r"lm_head are one tensor: .* must have both there"):
        load_model(spec, name="x", bos=0, device_map=device_map)


def test_weights_that_are_not_finite_are_found_on_disk_too(tmp_path: Path) -> None:
    model = decoders.build("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"up_proj\.weight holds numbers that are not finite"):
        load_model(
            ModelSpec(source="local", path=tmp_path),
            name="x",
            bos=0,
            device_map=halves(model, "cpu", "disk"),
        )
