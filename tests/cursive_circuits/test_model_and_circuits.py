"""The model against plain formulas, its cache, its circuits as bilinear forms, and public
checkpoints.
"""

import json
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from cursive_circuits.data import Words, WrittenRows
from cursive_circuits.data_public_tokens import PublicTokens
from cursive_circuits.data_tokens import Tokens
from cursive_circuits.measure_circuits import (
    angular_spectrum,
    compute_OV_circuit,
    compute_QK_circuit,
    distance_angles,
    folded,
    get_attention_patterns,
    get_QK_matrices,
    get_VO_matrices,
    radius_kernel,
    token_circuits,
    with_one,
)
from cursive_circuits.measure_composition import get_composition_score
from cursive_circuits.measure_losses import losses
from cursive_circuits.model import KINDS, Head, Kind
from cursive_circuits.model_blocks import turned
from cursive_circuits.model_checkpoint import checkpoint_stem, load_public
from cursive_circuits.model_sampling import sample
from cursive_circuits.model_watching import observing
from cursive_circuits.params import CursiveCircuits
from cursive_circuits.run_directory import Trained, open_run, save_run
from interp_core.errors import InputError
from interp_core.files.artifacts import save_weights
from interp_core.measures.paths import Cut, without
from interp_core.models.hooks import capture, intervene
from interp_core.models.sites import Site
from small_strokes import ALPHABET, public_checkpoint, random_model

POSITIONS = ("rotary", "learned")


def inputs(words: Words, section: CursiveCircuits) -> tuple[Tensor, Tensor]:
    source = WrittenRows(words, section.handwriting.mixture, 4, 1, 0, 120)
    return source(0)[0], source.inputs(0)["text"]


SITES = ("resid_pre", "attn.z", "cross_attn.z", "attn.rot_q", "attn.rot_k", "attn.v")


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", SITES)
def test_the_model_goes_on_with_what_a_site_is_made(
    name: str, positions: str, words: Words, tokens: Tokens, section: CursiveCircuits
) -> None:
    model, site = random_model(tokens, positions=positions), Site(1, name)
    ids, text = inputs(words, section)
    with torch.no_grad():
        clean = model(ids, text).logits

        with capture(model, [site]) as seen, intervene(model, {site: torch.clone}):
            same = model(ids, text).logits
        with intervene(model, {site: lambda activation: 2 * activation}):
            other = model(ids, text).logits

    torch.testing.assert_close(same, clean, rtol=0, atol=0)
    assert not torch.allclose(other, clean)

    size = (*ids.shape, 16) if name == "resid_pre" else (*ids.shape, 2, 8)
    assert seen[site].shape == size
    with pytest.raises(InputError, match="this model has the sites resid_pre"):
        model.attach(Site(1, "mlp_out"), torch.clone)


def test_a_head_without_a_part_of_its_keys_is_that_head_computed_by_hand(
    words: Words, tokens: Tokens, section: CursiveCircuits
) -> None:
    model = random_model(tokens)
    ids, text = inputs(words, section)
    part = torch.randn(*ids.shape, 16, generator=torch.Generator().manual_seed(1))
    site = Site(1, "attn.rot_k")

    with torch.no_grad():
        with capture(model, [Site(1, "resid_pre"), site]) as clean:
            model(ids, text)
        block, x = model.layers[1], clean[Site(1, "resid_pre")]
        keys, _ = block.self_attention.keys_values(block.self_norm(x - part))
        rotation = model.rotation(0, ids.shape[1])
        assert rotation is not None
        by_hand = turned(keys, *rotation)

        cut = Cut(1, "k", (1,), part)
        with without(model, [cut], lambda: model(ids, text)), capture(model, [site]) as seen:
            model(ids, text)

    torch.testing.assert_close(seen[site][:, :, 1], by_hand[:, 1], rtol=0, atol=0)
    torch.testing.assert_close(seen[site][:, :, 0], clean[site][:, :, 0], rtol=0, atol=0)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bilinear_form_gives_the_models_scores_for_every_head(
    positions: str, kind: Kind, words: Words, tokens: Tokens, section: CursiveCircuits
) -> None:
    model = random_model(tokens, positions=positions)
    ids, text = inputs(words, section)
    with torch.no_grad(), observing(model) as seen:
        model(ids, text)
        memory, _ = model.read_text(text, len(ids))
    for layer in range(model.n_layers):
        found = seen[layer, kind]
        scores = (found.call.query @ found.call.key.transpose(-1, -2)) * found.call.scaling
        norm = model.layers[layer].self_norm if kind == "self" else model.layers[layer].cross_norm
        x = with_one((found.read - norm.bias) / norm.weight)  # the stream, centred and scaled
        for head in range(model.n_heads):
            for query in (0, 7, 20):
                keys = range(query + 1) if kind == "self" else range(text.shape[1])
                other = x if kind == "self" else with_one(memory)
                for key in keys:
                    angles = distance_angles(model, query - key) if kind == "self" else None
                    form = compute_QK_circuit(*get_QK_matrices(model, layer, head, kind), angles)
                    ours = torch.einsum("bi,ij,bj->b", x[:, query], form, other[:, key])
                    torch.testing.assert_close(
                        ours, scores[:, head, query, key], atol=2e-5, rtol=1e-5
                    )


@pytest.mark.parametrize("kind", KINDS)
def test_values_through_w_o_are_what_each_head_adds(
    kind: Kind, words: Words, tokens: Tokens, section: CursiveCircuits
) -> None:
    model = random_model(tokens)
    ids, text = inputs(words, section)
    with torch.no_grad(), observing(model) as seen:
        model(ids, text)
        memory, _ = model.read_text(text, len(ids))
    for layer in range(model.n_layers):
        found, attention = seen[layer, kind], model.attention(layer, kind)
        norm = model.layers[layer].self_norm
        source = (
            with_one((found.read - norm.bias) / norm.weight) if kind == "self" else with_one(memory)
        )
        pattern = found.call.pattern()
        parts = [
            pattern[:, head]
            @ source
            @ compute_OV_circuit(*get_VO_matrices(model, layer, head, kind))
            for head in range(model.n_heads)
        ]
        for head, part in enumerate(parts):
            written = model.written(Head(layer, kind, head), found.z[:, :, head])
            torch.testing.assert_close(part, written, atol=2e-5, rtol=1e-4)
        whole = attention.out(rearrange(found.z, "row position head e -> row position (head e)"))
        torch.testing.assert_close(sum(parts) + attention.out.bias, whole, atol=5e-5, rtol=1e-4)


def test_slices_along_the_wrong_axis_are_far_off(tokens: Tokens) -> None:
    model = random_model(tokens)
    d, attention, block = model.d_head, model.attention(0, "self"), model.layers[0]
    right, _ = get_QK_matrices(model, 0, 1)
    wrong = attention.q.weight[
        :, d : 2 * d
    ]  # columns of nn.Linear's weight, as earlier versions took
    assert (block.self_norm.weight[:, None] * wrong - right[:-1]).abs().max() > 0.1
    _, out = get_VO_matrices(model, 0, 1)
    assert (attention.out.weight[d : 2 * d] - out).abs().max() > 0.1


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_cache_gives_the_logits_of_the_whole_row(
    positions: str, words: Words, tokens: Tokens, section: CursiveCircuits
) -> None:
    model = random_model(tokens, positions=positions, spread=0.1)
    ids, text = inputs(words, section)
    cache = model.empty_cache(len(ids), ids.shape[1])
    with torch.no_grad():
        whole = model(ids, text).logits
        steps = [model(ids[:, :5], text, cache=cache).logits]
        steps += [
            model(ids[:, t : t + 1], text, cache=cache).logits for t in range(5, ids.shape[1])
        ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_nothing_of_the_future_and_nothing_of_the_padding_is_read(
    words: Words, tokens: Tokens, section: CursiveCircuits
) -> None:
    model = random_model(tokens)
    ids, text = inputs(words, section)
    with torch.no_grad():
        before = model(ids, text).logits
        later = ids.clone()
        later[:, 30:] = tokens.word
        torch.testing.assert_close(model(later, text).logits[:, :30], before[:, :30])
        wider = functional.pad(text, (0, 3))
        torch.testing.assert_close(model(ids, wider).logits, before, atol=1e-5, rtol=1e-5)
        unmasked = random_model(tokens, mask_padding=False)
        seen = unmasked(ids, text).logits
        torch.testing.assert_close(
            unmasked(ids, wider).logits, seen, atol=0, rtol=0
        )  # always padded to the longest
        unmasked.character.weight[0] += 1.0
        assert (unmasked(ids, text).logits - seen).abs().max() > 1e-3


def test_losses_by_kind_add_up(trained: Trained, words: Words, section: CursiveCircuits) -> None:
    ids, text = inputs(words, section)
    found = losses(trained.model, trained.tokens, ids, text)
    radius = ~np.isnan(found["radius"])
    np.testing.assert_allclose((found["radius"] + found["pen"])[radius], found["loss"][radius])
    direction = ~np.isnan(found["direction"])
    assert not (radius & direction).any()
    np.testing.assert_allclose(found["direction"][direction], found["loss"][direction])
    assert (found["pen"][radius] > 0).all()


def test_sampled_rows_keep_their_slots_and_repeat_with_their_seed(
    trained: Trained, words: Words
) -> None:
    text = torch.from_numpy(np.stack([words.text(["abc"]), words.text(["xyz"])]))

    def drawn() -> list[np.ndarray]:
        generator = torch.Generator().manual_seed(4)
        return sample(
            trained.model, trained.tokens, text, temperature=1.0, longest=41, generator=generator
        )

    rows = drawn()
    for row, again in zip(rows, drawn(), strict=True):
        np.testing.assert_array_equal(row, again)
        strokes = row[2:][row[2:] != trained.tokens.word]
        assert (strokes[::2] < trained.tokens.directions).all()
        assert (strokes[1::2] >= trained.tokens.directions).all()
    with pytest.raises(InputError, match="temperature"):
        sample(
            trained.model,
            trained.tokens,
            text,
            temperature=0.0,
            longest=4,
            generator=torch.Generator(),
        )


def test_a_cosine_of_the_angle_has_its_whole_power_at_its_frequency() -> None:
    angle = 2 * np.pi * np.arange(24) / 24
    scores = 3 * np.cos(5 * (angle[:, None] - angle[None])) + 7
    spectrum = angular_spectrum(scores)
    assert spectrum[4] == pytest.approx(1.0)
    assert np.delete(spectrum, 4).max() < 1e-9
    mixed = (
        scores + np.cos(5 * angle)[:, None]
    )  # a part that depends on the query alone is no function of the angle
    assert angular_spectrum(mixed)[4] < 1
    kernel = radius_kernel(np.subtract.outer(np.arange(6.0), np.arange(6.0)))
    np.testing.assert_allclose(kernel, -np.arange(-5.0, 6.0))


def test_token_bases_show_a_head_that_copies(trained: Trained, tokens: Tokens) -> None:
    model = random_model(tokens)
    value, out = (model.attention(1, "self").kv.weight, model.attention(1, "self").out.weight)
    with torch.no_grad():
        model.layers[1].self_norm.weight.fill_(1.0)
        model.norm.weight.fill_(1.0)
        model.unembed.weight.copy_(model.embed.weight)
        head = torch.linalg.qr(torch.randn(16, 8, generator=torch.Generator().manual_seed(0))).Q
        value[16:24] = 4 * head.T
        out[:, :8] = head
    _, report = token_circuits(Trained("handwriting", model, tokens, ALPHABET), (1, 4))
    others = [entry["copying"] for name, entry in report["heads"].items() if name != "L1H0"]
    assert report["heads"]["L1H0"]["copying"] > 2 > max(others)
    assert report["reads"].startswith(("L0X", "L1X"))


def test_random_matrices_compose_by_one_over_root_d_not_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [
        get_composition_score(*torch.randn(2, 64, 64, generator=generator)) for _ in range(10)
    ]
    assert np.mean(scores) == pytest.approx(64**-0.5, rel=0.05)


def test_patterns_of_the_notebook_are_rows_of_attention(
    trained: Trained, words: Words, section: CursiveCircuits
) -> None:
    (pattern,) = get_attention_patterns(trained.model, [inputs(words, section)] * 2, 1, 0)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]), atol=1e-5, rtol=0)
    assert pattern.triu(1).abs().max() == 0
    assert len(folded(trained.model, 0, "cross")) == 3


def public_logits(
    w: dict[str, Tensor], ids: Tensor, text: Tensor, layers: int, heads: int
) -> Tensor:
    """A public checkpoint run by hand, straight from its names."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        q, k, v = (rearrange(part, "b t (h e) -> b h t e", h=heads) for part in (q, k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        return rearrange(scores.softmax(-1) @ v, "b h t e -> b t (h e)")

    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][: ids.shape[1]]
    c = w["transformer.wce.weight"][text] + w["transformer.wcpe.weight"][: text.shape[1]]
    for n in range(layers):
        at = f"transformer.h.{n}"
        q, k, v = linear(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn").chunk(3, dim=-1)
        x = x + linear(attend(q, k, v, causal=True), f"{at}.attn.c_proj")
        k, v = linear(c, f"{at}.cross_attn.c_attn_kv").chunk(2, dim=-1)
        q = linear(norm(x, f"{at}.ln_2"), f"{at}.cross_attn.c_attn_q")
        x = x + linear(attend(q, k, v, causal=False), f"{at}.cross_attn.c_proj")
        h = linear(norm(x, f"{at}.ln_3"), f"{at}.mlp.c_fc")
        x = x + linear(functional.gelu(h, approximate="tanh"), f"{at}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


TOKENS = PublicTokens()
SHAPE = random_model(
    TOKENS, positions="rotary"
).shape  # a profile's, of which a checkpoint takes the heads alone


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_public_checkpoint_loads_exactly_and_runs_as_its_names_say(
    suffix: str, tmp_path: Path
) -> None:
    public, path = public_checkpoint(layers=3), tmp_path / f"checkpoint{suffix}"
    save_weights(path, public) if suffix == ".safetensors" else torch.save(
        {"model_state_dict": public}, path
    )
    loaded = load_public(path, SHAPE, tokens=TOKENS, alphabet=ALPHABET)
    assert (loaded.n_layers, loaded.shape.context, loaded.shape.characters) == (3, 120, 50)

    ids, text = torch.randint(TOKENS.size, (2, 90)), torch.randint(1, len(ALPHABET), (2, 7))
    theirs_of = torch.from_numpy(TOKENS.public_ids)
    padded = functional.pad(text, (0, 43))
    with torch.no_grad():
        theirs = public_logits(public, theirs_of[ids], padded, layers=3, heads=2)[..., theirs_of]
        unpadded = public_logits(public, theirs_of[ids], text, layers=3, heads=2)[..., theirs_of]
        torch.testing.assert_close(loaded(ids, text).logits, theirs, atol=2e-5, rtol=1e-5)
        cache = loaded.empty_cache(2, 90)
        grown = [loaded(ids[:, t : t + 1], text, cache=cache).logits for t in range(90)]
        torch.testing.assert_close(torch.cat(grown, dim=1), theirs, atol=2e-5, rtol=1e-5)
    assert (
        unpadded - theirs
    ).abs().max() > 0.1  # what a text without its padding would be wrong by


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda public: public.pop("lm_head.weight"), "missing lm_head.weight"),
        (
            lambda public: public.update({"transformer.h.2.ln_1.weight": torch.ones(16)}),
            "of 3 layers: missing",
        ),
        (
            lambda public: public.update({"transformer.extra": torch.ones(16)}),
            "surplus transformer.extra",
        ),
        (
            lambda public: public.update({"transformer.wte.weight": torch.ones(454, 16)}),
            "has 454 tokens, the public tokenizer 525",
        ),
        (
            lambda public: public.update({"transformer.wce.weight": torch.ones(73, 16)}),
            "knows 72 characters, `bank.alphabet` has 27",
        ),
        (
            lambda public: public.update({"lm_head.weight": torch.ones(525, 8)}),
            r"lm_head.weight is \[525, 8\], its other tensors need \[525, 16\]",
        ),
        (
            lambda public: public.update({"lm_head.weight": torch.ones(16, 16)}),
            r"lm_head.weight is \[16, 16\], its other tensors need \[525, 16\]",
        ),
        (
            lambda public: public.update({"transformer.h.0.attn.c_attn.bias": torch.tensor(1.0)}),
            r"attn.c_attn.bias is \[\], its other tensors need \[48\]",
        ),
        (
            lambda public: public.update({"transformer.wpe.weight": torch.ones(120, 8)}),
            r"transformer.wpe.weight is \[120, 8\], its other tensors need \[120, 16\]",
        ),
        (
            lambda public: public.update({"transformer.h.987654321.ln_1.bias": torch.ones(16)}),
            "of 3 layers: missing",
        ),
        (
            lambda public: public.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 1, 1)[0]}),
            "not a causal mask",
        ),
        (
            lambda public: public.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)}),
            "not a causal mask",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    change: object, message: str, tmp_path: Path
) -> None:
    public = public_checkpoint()
    assert callable(change)
    change(public)
    save_weights(tmp_path / "c.safetensors", public)
    with pytest.raises(InputError, match=message):
        load_public(tmp_path / "c.safetensors", SHAPE, tokens=TOKENS, alphabet=ALPHABET)


def test_a_public_checkpoint_is_measured_with_public_tokens_alone(tmp_path: Path) -> None:
    save_weights(tmp_path / "c.safetensors", public_checkpoint())
    ladder = {"smallest_radius": 0.005, "largest_radius": 0.4, "origin": (0.0, 0.6)}
    other = Tokens(directions=220, radii=151, **ladder)
    assert other.size == TOKENS.size
    with pytest.raises(InputError, match="knows the public tokens alone"):
        load_public(tmp_path / "c.safetensors", SHAPE, tokens=other, alphabet=ALPHABET)


def test_a_checkpoint_is_called_by_its_file_and_dots_are_the_names() -> None:
    files = ("run-1.4.pt", "run-1.7.safetensors", "run-1.4", "run.ckpt")
    assert [checkpoint_stem(Path("/home/me") / file) for file in files] == [
        "run-1.4",
        "run-1.7",
        "run-1.4",
        "run",
    ]


def test_a_run_that_is_called_as_a_place_elsewhere_is_refused(
    tokens: Tokens, tmp_path: Path
) -> None:
    run = tmp_path / "control"
    save_run(run, Trained("control", random_model(tokens), tokens, ALPHABET), [], {})
    assert open_run(run).name == "control"
    (run / "files.json").unlink()  # its record would call what follows damaged
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"name": "../../thesis"}))
    with pytest.raises(
        InputError, match=r"config.json: name: '../../thesis' becomes a file's name"
    ):
        open_run(run)


def test_a_file_with_code_in_it_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"model_state_dict": public_checkpoint(), "args": Path}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="no checkpoint of plain tensors"):
        load_public(tmp_path / "c.pt", SHAPE, tokens=TOKENS, alphabet=ALPHABET)


def test_a_changed_instruction_of_a_pickle_is_one_line(tmp_path: Path) -> None:
    whole, changed = tmp_path / "whole.pt", tmp_path / "c.pt"
    torch.save({"model_state_dict": public_checkpoint()}, whole)
    with zipfile.ZipFile(whole) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = [name for name in members if name.endswith("data.pkl")]

    rng = Random(0)
    refused = 0
    for _ in range(300):
        content = bytearray(members[pickled])
        content[rng.randrange(len(content))] = rng.randrange(256)
        with zipfile.ZipFile(changed, "w") as archive:
            for name, held in (members | {pickled: bytes(content)}).items():
                archive.writestr(name, held)
        try:
            load_public(changed, SHAPE, tokens=TOKENS, alphabet=ALPHABET)
        except InputError:
            refused += 1
    assert refused > 200


def test_rows_and_texts_that_do_not_fit_are_refused(trained: Trained) -> None:
    with pytest.raises(InputError, match="longer than the context"):
        trained.model(torch.zeros(1, 300, dtype=torch.long))
    with pytest.raises(InputError, match="longer than the 20"):
        trained.model(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 21, dtype=torch.long))
    with pytest.raises(InputError, match="outside the vocabulary"):
        trained.model(torch.full((1, 3), 999))
