"""Composition finds the planted pair, and path patching changes what the reader's keys read,
nothing else.
"""

from typing import Any

import numpy as np
import pytest
import torch

import known_circuits as known
import small_models as small
import small_project
from interp_core.loading import transformer_of
from interp_core.models.subject import Transformer
from interp_core.statistics.heads import Head
from interp_core.stimuli.prompts import Prompts, repeated_tokens
from pythia_topology.intervene_controls import Roles
from pythia_topology.intervene_paths import composition, path_patching

PLANTED = (Head(*known.PREVIOUS_TOKEN_HEAD), Head(*known.INDUCTION_HEAD))
HEADS = [(layer, head) for layer in range(known.N_LAYERS) for head in range(known.N_HEADS)]


def prompts_of(n: int = 8) -> Prompts:
    return repeated_tokens(known.VOCABULARY, period=16, n_prompts=n, rng=np.random.default_rng(0))


def roles(reader: tuple[int, int] = known.INDUCTION_HEAD) -> Roles:
    excess = np.zeros((known.N_LAYERS, known.N_HEADS))
    excess[reader] = 1
    return Roles(excess, [Head(*reader)], [Head(*known.PREVIOUS_TOKEN_HEAD)])


def report_of(subject: Transformer, **changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    params = small_project.study(
        **({"path_pairs": 1, "causal_top_k": 1, "composition_draws": 40} | changes)
    )
    return composition(subject, prompts_of(), roles(), params)


def test_the_planted_pair_comes_first_and_is_confirmed(planted: Transformer) -> None:
    report, arrays = report_of(planted, path_pairs=2)
    first, second = report["pairs"]
    assert (first["writer"], first["reader"]) == ("L0H1", "L1H2")
    assert first["z"] == report["z_max"] == pytest.approx(arrays["z"].max(), rel=1e-6)
    assert first["z"] > 10 > abs(second["z"])
    assert first["path_patching"]["value"] == pytest.approx(-1, abs=0.05)
    assert first["path_patching"]["high"] < -0.9
    assert second["path_patching"]["value"] == pytest.approx(0, abs=1e-6)
    assert report["verdict"].startswith("confirmed: without L0H1 -> L1H2")
    assert "at random by" in report["verdict"]
    assert np.unravel_index(arrays["z"].argmax(), arrays["z"].shape) == (*PLANTED[0], *PLANTED[1])


def test_random_pairs_of_the_same_layers_change_nothing(planted: Transformer) -> None:
    report, _ = report_of(planted, path_pairs=2)
    assert len(report["random_pairs"]) == 2
    names = [
        (pair["writer"], pair["reader"]) for pair in [*report["pairs"], *report["random_pairs"]]
    ]
    assert len(set(names)) == 4
    for pair in report["random_pairs"]:
        assert pair["writer"][:2] == "L0"
        assert pair["path_patching"]["value"] == pytest.approx(0, abs=1e-6)


def test_control_pairs_hold_no_previous_token_head(planted: Transformer) -> None:
    """Were the planted writer a control of itself, nothing could be confirmed."""
    everything = {"path_pairs": 2, "causal_top_k": 3}
    params = small_project.study(composition_draws=40, **everything)
    excess = np.zeros((known.N_LAYERS, known.N_HEADS))
    excess[1] = [0.1, 0.2, 1.0, 0.3]
    writers = [Head(0, head) for head in range(known.N_HEADS - 1)]
    found = Roles(excess, [Head(*known.INDUCTION_HEAD)], writers)
    report, _ = composition(planted, prompts_of(), found, params)
    idle = str(Head(0, known.N_HEADS - 1))
    assert {pair["writer"] for pair in report["random_pairs"]} == {idle}
    assert report["control"].endswith("random pairs, writers from L0, no previous-token heads")


def test_a_reader_that_does_not_use_the_writer_is_not_confirmed() -> None:
    """The duplicate-token head reads tokens: the previous-token head before it is no part of its
    circuit.
    """
    subject = transformer_of(known.duplicate_token_model(), name="duplicate")
    report, _ = report_of(subject, path_pairs=2)
    assert all(abs(pair["path_patching"]["value"]) < 1e-6 for pair in report["pairs"])
    assert report["verdict"].startswith("not confirmed")


def test_one_layer_cannot_compose() -> None:
    subject = transformer_of(small.build("gpt2", n_layer=1), name="flat", bos=0)
    params = small_project.study()
    flat = Roles(np.ones((1, small.HEADS)), [], [])
    report, _ = composition(subject, small.prompts(), flat, params)
    assert (report["pairs"], report["random_pairs"], report["z_max"]) == ([], [], None)
    assert report["verdict"] == "no pair of heads can compose: one layer"


def swap_keys_and_queries(model: Any) -> None:
    """Let the second layer's heads ask with what they were found by, and be found by what they
    asked with.
    """
    attention = model.transformer.h[1].attn.c_attn
    q, k = slice(0, known.D_MODEL), slice(known.D_MODEL, 2 * known.D_MODEL)
    for tensor in (attention.weight, attention.bias):
        tensor[..., q], tensor[..., k] = tensor[..., k].clone(), tensor[..., q].clone()


def attention_of(
    model: Any, tokens: torch.Tensor, prompts: Prompts, reader: tuple[int, int]
) -> np.ndarray:
    """Prefix matching by prompt from the model's own eager patterns."""
    pattern = model(tokens, output_attentions=True).attentions[reader[0]][:, reader[1]].numpy()
    pairs = prompts.pairs
    entries = pattern[pairs.batch, pairs.query, pairs.induction_key]
    return np.bincount(pairs.batch, entries) / np.bincount(pairs.batch)


def patched_by_hand(
    model: Any, prompts: Prompts, writer: tuple[int, int], reader: tuple[int, int], part: str
) -> np.ndarray:
    """GPT-2 alone: run once, take the writer's centred output out of the reader layer's input, and
    give the reader's queries, keys or values (`part`) from that input to the run that is otherwise
    as it was.
    """
    model.set_attn_implementation("eager")
    tokens = torch.tensor(prompts.tokens)
    block, width = model.transformer.h, model.config.n_embd
    size = width // model.config.n_head
    kept: dict[str, torch.Tensor] = {}
    handles = [
        block[writer[0]].attn.c_proj.register_forward_pre_hook(lambda _, a: kept.update(z=a[0])),
        block[reader[0]].register_forward_pre_hook(lambda _, a: kept.update(residual=a[0])),
    ]
    with torch.no_grad():
        before = attention_of(model, tokens, prompts, reader)
    for handle in handles:
        handle.remove()
    own = slice(writer[1] * size, (writer[1] + 1) * size)
    z = kept["z"][..., own]
    written = (z - z.mean(dim=(0, 1))) @ block[writer[0]].attn.c_proj.weight[own]
    without = block[reader[0]].attn.c_attn(block[reader[0]].ln_1(kept["residual"] - written))
    start = ("query", "key", "value").index(part) * width + reader[1] * size

    def replace(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        edited = output.clone()
        edited[..., start : start + size] = without[..., start : start + size]
        return edited

    handle = block[reader[0]].attn.c_attn.register_forward_hook(replace)
    with torch.no_grad():
        after = attention_of(model, tokens, prompts, reader)
    handle.remove()
    return after - before


@pytest.mark.parametrize(
    ("writer", "reader"), [((0, 1), (1, 2)), ((0, 3), (2, 0)), ((1, 2), (2, 3))]
)
def test_path_patching_is_the_keys_of_one_reader_patched_by_hand(
    writer: tuple[int, int], reader: tuple[int, int]
) -> None:
    model: Any = small.build("gpt2")
    prompts = small.prompts()
    subject = transformer_of(model, name="gpt2", bos=0)
    pair = (Head(*writer), Head(*reader))
    found = path_patching(subject, prompts, [pair], batch_size=8)[:, 0]
    expected = {
        part: patched_by_hand(model, prompts, writer, reader, part) for part in ("query", "key")
    }
    assert np.abs(expected["key"]).max() > 1e-4
    np.testing.assert_allclose(found, expected["key"], atol=1e-5)
    assert np.abs(found - expected["query"]).max() > 1e-4


def test_the_previous_token_head_feeds_keys_and_a_swapped_reader_has_none_to_lose() -> None:
    """Where the planted circuit feeds the queries instead, taking it out of the keys changes
    nothing.
    """
    model = known.induction_model()
    swap_keys_and_queries(model)
    prompts = prompts_of()
    change = path_patching(transformer_of(model, name="swapped"), prompts, [PLANTED], batch_size=8)
    np.testing.assert_allclose(change, 0, atol=1e-5)


def test_path_patching_does_not_depend_on_how_prompts_are_batched(planted: Transformer) -> None:
    random = transformer_of(small.build("gpt2"), name="gpt2", bos=0)
    for subject, prompts, pairs in (
        (planted, prompts_of(7), [PLANTED]),
        (random, small.prompts(7), [(Head(0, 1), Head(1, 2)), (Head(1, 0), Head(2, 2))]),
    ):
        whole = path_patching(subject, prompts, pairs, batch_size=7)
        parts = path_patching(subject, prompts, pairs, batch_size=3)
        np.testing.assert_allclose(parts, whole, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
def test_path_patching_leaves_no_hooks(name: str) -> None:
    model = small.build(name)
    subject = transformer_of(model, name=name, bos=0)
    prompts = small.prompts()
    ids = subject.ids(prompts.tokens)
    before = model(ids).logits
    pairs = [(Head(0, 0), Head(1, 1)), (Head(1, 3), Head(2, 0))]
    path_patching(subject, prompts, pairs, batch_size=2)
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []
    assert model(ids).logits.equal(before)


def test_the_same_seed_gives_the_same_report(planted: Transformer) -> None:
    assert report_of(planted, seed=3)[0] == report_of(planted, seed=3)[0]
