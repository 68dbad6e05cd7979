"""Cells that read the notebook's paths into the model, run as they stand: a hook on the attention
patterns, and raw weights. On a model with rotary positions, and on a public checkpoint.
"""

import copy
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cursive_circuits import notebook
from cursive_circuits.data_bank import Item, save_bank
from cursive_circuits.model import CursiveTransformer
from cursive_circuits.model_blocks import turned
from cursive_circuits.notebook_attention import NAMES, SelfAttention
from cursive_circuits.run_directory import Trained, save_run
from interp_core.errors import InputError
from interp_core.models.hooks import hooked, intervene, zero
from interp_core.models.sites import Site
from small_strokes import ALPHABET, public_checkpoint, random_model

CELLS = {
    "patterns of batches": """
kept = []

def keep(module, input, output):
    kept.append(output.detach().cpu())

handle = model.transformer.layers[layer].self_attn.attn_drop.register_forward_hook(keep)
for batch in loader:
    inputs, _ = batch
    with torch.no_grad():
        _ = model(inputs.to(device))
handle.remove()
patterns = torch.cat(kept, dim=0)
""",
    "patterns of one word": """
inputs, targets = dataset[0]
inputs = inputs.unsqueeze(0).to(device)
seen = []

def see(module, input, output):
    seen.append((input, output.detach().cpu()))

handle = model.transformer.layers[layer].self_attn.attn_drop.register_forward_hook(see)
with torch.no_grad():
    outputs = model(inputs)
handle.remove()
""",
    "weights": """
heads = model.transformer.layers[layer].self_attn.num_heads
d_head = model.transformer.layers[layer].self_attn.head_dim
W_Q = model.transformer.layers[layer].self_attn.q_proj.weight
W_K = model.transformer.layers[layer].self_attn.k_proj.weight
W_V = model.transformer.layers[layer].self_attn.v_proj.weight
W_O = model.transformer.layers[layer].self_attn.out_proj.weight
columns = W_Q[:, d_head : 2 * d_head] @ W_K[:, d_head : 2 * d_head].T
written = W_V[:, d_head : 2 * d_head] @ W_O[d_head : 2 * d_head, :]
""",
}


@pytest.fixture(scope="module", params=["rotary", "public"])
def subject(
    request: pytest.FixtureRequest, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> notebook.CursiveTransformer:
    """A model of each kind, from its file."""
    place = tmp_path_factory.mktemp("models") / "best.pt"
    if request.param == "public":
        torch.save({"model_state_dict": public_checkpoint(context=300)}, place)
    else:
        model = random_model(trained.tokens, context=260)
        save_run(place, Trained("handwriting", model, trained.tokens, ALPHABET), [], {})
    return notebook.CursiveTransformer.load_from_checkpoint(place, profile="smoke")


@pytest.fixture(scope="module")
def dataset(
    subject: notebook.CursiveTransformer,
    items: list[Item],
    tmp_path_factory: pytest.TempPathFactory,
) -> notebook.CursiveDataset:
    place = tmp_path_factory.mktemp("bank") / "bank.zip"
    save_bank(place, items)
    return notebook.CursiveDataset("test", model=subject, bank=place)


@pytest.fixture(scope="module")
def inputs(dataset: notebook.CursiveDataset) -> notebook.Inputs:
    """Four words."""
    return next(iter(DataLoader(dataset, batch_size=4)))[0]


@pytest.fixture
def own(subject: notebook.CursiveTransformer) -> notebook.CursiveTransformer:
    """A copy to write into."""
    return copy.deepcopy(subject)


def run(cell: str, **given: Any) -> dict[str, Any]:
    """What a cell leaves behind."""
    found = {"torch": torch, "device": torch.device("cpu"), **given}
    exec(compile(CELLS[cell], cell, "exec"), found)
    return found


def studied(model: notebook.CursiveTransformer) -> CursiveTransformer:
    """The study's own model, with these weights and under its own names of them."""
    sizes = {"vocabulary": model.tokens.size, "alphabet": len(model.alphabet)}
    found = CursiveTransformer(model.shape, **sizes, seed=1)
    found.load_state_dict(model.state_dict(), strict=True)
    return found.eval()


def self_attn(model: notebook.CursiveTransformer, layer: int) -> SelfAttention:
    return model.transformer.layers[layer].self_attn


def even(positions: int) -> Tensor:
    """The pattern of a head that tells no key from another."""
    shares = torch.ones(positions, positions).tril()
    return shares / shares.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_hook_on_attn_drop_sees_the_patterns_of_all_heads(
    layer: int, subject: notebook.CursiveTransformer, dataset: notebook.CursiveDataset
) -> None:
    loader = DataLoader(dataset, batch_size=4)
    patterns = run("patterns of batches", model=subject, layer=layer, loader=loader)["patterns"]

    for head in range(subject.n_heads):
        ours = notebook.get_attention_patterns(subject, loader, layer, head, num_batches=99)
        assert patterns[:, head].shape == ours.shape
        real = ~ours.isnan()
        torch.testing.assert_close(patterns[:, head][real], ours[real], atol=1e-5, rtol=1e-4)

    found = run("patterns of one word", model=subject, layer=layer, dataset=dataset)
    [((read,), pattern)] = found["seen"]
    torch.testing.assert_close(pattern[0], patterns[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(read, pattern)


def test_a_model_that_is_watched_gives_the_studys_logits(
    subject: notebook.CursiveTransformer,
    dataset: notebook.CursiveDataset,
    inputs: notebook.Inputs,
) -> None:
    study = studied(subject)
    word = run("patterns of one word", model=subject, layer=1, dataset=dataset)
    with torch.no_grad():
        exact = study(word["inputs"].ids, word["inputs"].text).logits
        torch.testing.assert_close(word["outputs"].logits, exact, atol=1e-5, rtol=1e-5)

        # No hook is left: to the bit.
        exact = study(inputs.ids, inputs.text).logits
        assert torch.equal(subject(inputs).logits, exact)

        # Token after token, where a query reads what is in a cache.
        cache = subject.empty_cache(len(inputs.ids), 6)
        shapes: list[tuple[int, ...]] = []
        with hooked(self_attn(subject, 0).attn_drop, "output", lambda x: shapes.append(x.shape)):
            subject(inputs.ids[:, :5], inputs.text, cache=cache)
            last = subject(inputs.ids[:, 5:6], cache=cache).logits
    torch.testing.assert_close(last[:, 0], exact[:, 5], atol=1e-5, rtol=1e-4)
    assert [shape[2:] for shape in shapes] == [(5, 5), (1, 6)]


@pytest.mark.parametrize("layer", [0, 1])
def test_the_raw_weights_are_those_that_make_a_layers_attention(
    layer: int, subject: notebook.CursiveTransformer, inputs: notebook.Inputs
) -> None:
    found = run("weights", model=subject, layer=layer)
    attention = self_attn(subject, layer)
    d_model = subject.d_model
    assert (found["heads"], found["d_head"]) == (subject.n_heads, d_model // subject.n_heads)
    assert found["columns"].shape == found["written"].shape == (d_model, d_model)

    seen: dict[str, Tensor] = {}
    with (
        torch.no_grad(),
        hooked(subject.layers[layer].self_norm, "output", lambda x: seen.update(x=x)),
        hooked(attention.attn_drop, "output", lambda x: seen.update(pattern=x)),
        hooked(attention.out_proj, "output", lambda x: seen.update(out=x)),
    ):
        subject(inputs)

    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (
        rearrange(seen["x"] @ found[name].T + part.bias, "b t (h e) -> b h t e", h=subject.n_heads)
        for name, part in zip(("W_Q", "W_K", "W_V"), parts, strict=True)
    )
    rotation = subject.rotation(0, inputs.ids.shape[1])
    if rotation is not None:
        query, key = turned(query, *rotation), turned(key, *rotation)

    scores = query @ key.mT / found["d_head"] ** 0.5
    future = torch.ones(scores.shape[-2:]).triu(1).bool()
    pattern = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
    z = rearrange(pattern @ value, "b h t e -> b t (h e)")
    torch.testing.assert_close(pattern, seen["pattern"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        z @ found["W_O"].T + attention.out_proj.bias, seen["out"], atol=1e-4, rtol=1e-4
    )


def test_what_is_written_into_a_weight_is_what_the_model_computes_with(
    own: notebook.CursiveTransformer,
    subject: notebook.CursiveTransformer,
    inputs: notebook.Inputs,
) -> None:
    before = subject(inputs).logits
    keys = self_attn(own, 0).k_proj
    with torch.no_grad():
        keys.weight[:] = 0
        keys.bias[:] = 0

    kept: list[Tensor] = []
    with hooked(self_attn(own, 0).attn_drop, "output", kept.append):
        after = own(inputs).logits
    level = even(inputs.ids.shape[1]).expand_as(kept[0])
    torch.testing.assert_close(kept[0], level)
    assert not torch.allclose(after, before, atol=1e-2)
    assert torch.equal(subject(inputs).logits, before)  # a copy has its own

    # One tensor, also where the model is in another precision.
    weight = own.double().state_dict()["blocks.0.self_attention.kv.weight"]
    assert keys.weight.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()

    values, packed = self_attn(own, 1).v_proj, own.attention(1, "self").kv.weight
    values.weight.sum().backward()
    assert packed.grad is not None
    assert packed.grad.mean(dim=1).tolist() == [0.0] * own.d_model + [1.0] * own.d_model


@pytest.mark.parametrize("layer", [0, 1])
def test_what_a_hook_returns_takes_the_place_of_what_it_saw(
    layer: int, subject: notebook.CursiveTransformer, inputs: notebook.Inputs
) -> None:
    attention = self_attn(subject, layer)
    everyone = range(subject.n_heads)
    with torch.no_grad():
        with intervene(subject, {Site(layer, "attn.z"): zero(heads=everyone)}):
            silent = subject(inputs).logits
        for name in ("attn_drop", "v_proj"):
            with hooked(getattr(attention, name), "output", torch.zeros_like):
                torch.testing.assert_close(subject(inputs).logits, silent, atol=1e-5, rtol=1e-5)

        # No query tells keys of nothing apart, nor does one of nothing tell any apart.
        for name in ("q_proj", "k_proj"):
            with hooked(getattr(attention, name), "output", torch.zeros_like):
                level = notebook.get_attention_patterns(subject, [(inputs, inputs.ids)], layer, 0)
            real = ~level.isnan()
            expected = even(inputs.ids.shape[1]).expand_as(level)
            torch.testing.assert_close(level[real], expected[real])


def test_every_part_fires_once_in_a_pass_and_beside_an_observer(
    subject: notebook.CursiveTransformer, inputs: notebook.Inputs
) -> None:
    fired: list[str] = []
    handles = [
        getattr(self_attn(subject, 1), name).register_forward_hook(
            lambda *_, name=name: fired.append(name)
        )
        for name in NAMES
    ]
    watched = notebook.get_attention_patterns(subject, [(inputs, inputs.ids)], 1, 1)
    for handle in handles:
        handle.remove()

    assert sorted(fired) == sorted(NAMES)
    plain = notebook.get_attention_patterns(subject, [(inputs, inputs.ids)], 1, 1)
    torch.testing.assert_close(watched, plain, equal_nan=True, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_hook_on_a_part_fires(
    name: str, kind: str, own: notebook.CursiveTransformer, inputs: notebook.Inputs
) -> None:
    fired: list[str] = []
    getattr(getattr(self_attn(own, 0), name), kind)(lambda *_: fired.append(name))
    own(inputs).logits.sum().backward()
    assert fired == [name]


@pytest.mark.parametrize("name", NAMES)
def test_a_part_is_written_into_and_not_replaced(
    name: str, own: notebook.CursiveTransformer
) -> None:
    with pytest.raises(InputError, match=f"{name} is not replaced: write into its weight"):
        setattr(self_attn(own, 0), name, nn.Linear(16, 16))


@pytest.mark.parametrize("what", ["weight", "bias"])
@pytest.mark.parametrize("kind", [nn.Parameter, Tensor])
def test_half_of_a_packed_weight_is_written_into_and_not_replaced(
    what: str, kind: type[Tensor], own: notebook.CursiveTransformer
) -> None:
    with pytest.raises(InputError, match=rf"part of kv's: write into it, {what}\[\.\.\.\] ="):
        setattr(self_attn(own, 0).k_proj, what, kind(torch.zeros(16, 16)))
