"""What ablations do to a circuit that is known, and that the fast ways agree with the slow one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import known_circuits as known
import small_models as small
from interp_core.errors import InputError
from interp_core.loading import subject_of
from interp_core.measures.ablation import Ablation, ablation_effects, first_order_effects
from interp_core.measures.means import PlaceMeans
from interp_core.measures.scores import copy_behaviour
from interp_core.models.hooks import capture, intervene, replace_by
from interp_core.models.lens import BridgeSubject
from interp_core.models.native import NativeSubject
from interp_core.models.recording import recording
from interp_core.models.sites import Site
from interp_core.models.subject import Subject
from interp_core.stimuli.prompts import Prompts, repeated_tokens

ABLATIONS: tuple[Ablation, ...] = ("zero", "mean", "resample")
SINGLE = [[(layer, head)] for layer in range(small.LAYERS) for head in range(small.HEADS)]
SEVERAL = [[(0, 1), (2, 3)], [(1, 0), (1, 1), (2, 2)], [(2, 0), (0, 0)]]


def uneven(prompts: Prompts) -> Prompts:
    """The same prompts, the first two shortened by three tokens and padded."""
    pairs, lengths = prompts.pairs, prompts.lengths.copy()
    lengths[:2] -= 3
    keep = pairs.query + 1 < lengths[pairs.batch]
    kept = type(pairs)(
        pairs.batch[keep], pairs.query[keep], pairs.earlier[keep], pairs.target[keep]
    )
    tokens = np.where(np.arange(prompts.tokens.shape[1]) < lengths[:, None], prompts.tokens, 0)
    return replace(prompts, tokens=tokens, pairs=kept, lengths=lengths)


# Ground truth by construction


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_copying_needs_the_circuit_and_nothing_else(planted: Subject, ablation: Ablation) -> None:
    prompts = repeated_tokens(
        known.VOCABULARY, period=20, n_prompts=6, rng=np.random.default_rng(0)
    )
    heads = [(layer, head) for layer in range(known.N_LAYERS) for head in range(known.N_HEADS)]
    effects = ablation_effects(planted, prompts, [[head] for head in heads], ablation=ablation)
    assert (effects.clean_accuracy == 1).all()
    for index, head in enumerate(heads):
        if head in (known.PREVIOUS_TOKEN_HEAD, known.INDUCTION_HEAD):
            assert effects.accuracy[:, index].max() < 0.15
            assert effects.loss[:, index].min() > 1
        else:
            assert (effects.accuracy[:, index] == 1).all()
            np.testing.assert_allclose(effects.loss[:, index], effects.clean_loss, atol=1e-4)


def test_with_patterns_kept_only_the_head_that_writes_the_answer_matters(planted: Subject) -> None:
    """The previous-token head works through the induction head's keys alone: keep the patterns and
    it is not missed.
    """
    prompts = repeated_tokens(
        known.VOCABULARY, period=20, n_prompts=6, rng=np.random.default_rng(0)
    )
    sets = [[known.PREVIOUS_TOKEN_HEAD], [known.INDUCTION_HEAD]]
    effects = ablation_effects(planted, prompts, sets, ablation="zero", freeze_attention=True)
    assert (effects.accuracy[:, 0] == 1).all()
    assert effects.accuracy[:, 1].max() < 0.15


# A second way to compute the same thing


def slow_effects(
    subject: Subject, prompts: Prompts, sets: list[list[tuple[int, int]]], ablation: Ablation
) -> np.ndarray:
    """Loss by prompt and set, each from a full forward with plain interventions."""
    sites = [Site(layer, "attn.z") for layer in range(subject.n_layers)]
    real = torch.arange(prompts.tokens.shape[1]) < torch.as_tensor(prompts.lengths)[:, None]
    with torch.no_grad(), capture(subject, sites) as seen:
        subject.trunk(subject.ids(prompts.tokens))
    neighbour = np.roll(np.arange(len(prompts.tokens)), 1)
    around = np.arange(prompts.tokens.shape[1]) % prompts.lengths[neighbour, None]
    losses = []
    for heads in sets:
        edits = {}
        for layer in {layer for layer, _ in heads}:
            z = seen[Site(layer, "attn.z")]
            source = {
                "zero": torch.zeros_like(z),
                "mean": z[real].mean(0).expand_as(z),
                "resample": z[torch.as_tensor(neighbour)[:, None], torch.as_tensor(around)],
            }[ablation]
            edits[Site(layer, "attn.z")] = replace_by(
                [head for of, head in heads if of == layer], source
            )
        with intervene(subject, edits):
            losses.append(copy_behaviour(subject, prompts)[1])
    return np.stack(losses, axis=1)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", [*small.NATIVE, "phi", "opt"])
def test_effects_are_those_of_one_full_forward_a_set(name: str, ablation: Ablation) -> None:
    subject, prompts = subject_of(small.build(name), bos=0, name=name), uneven(small.prompts())
    sets = SINGLE + SEVERAL
    expected = slow_effects(subject, prompts, sets, ablation)
    for stack in (1, 3):
        effects = ablation_effects(
            subject, prompts, sets, ablation=ablation, stack=stack, batch_size=8
        )
        np.testing.assert_allclose(effects.loss, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(
        effects.clean_loss, copy_behaviour(subject, prompts)[1], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("parallel", [True, False])
def test_blocks_in_parallel_and_in_sequence_are_run_again_alike(parallel: bool) -> None:
    subject, prompts = (
        subject_of(small.build("gpt_neox", use_parallel_residual=parallel), bos=0),
        small.prompts(),
    )
    expected = slow_effects(subject, prompts, SINGLE + SEVERAL, "mean")
    effects = ablation_effects(subject, prompts, SINGLE + SEVERAL, ablation="mean")
    np.testing.assert_allclose(effects.loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", small.NATIVE)
def test_a_bridged_subject_has_the_same_effects(
    name: str, ablation: Ablation, freeze: bool
) -> None:
    prompts = uneven(small.prompts())
    native = subject_of(small.build(name), bos=0, name=name)
    bridged = BridgeSubject(name, small.build(name), None, 0)
    sets = SINGLE[::3] + SEVERAL
    one, two = (
        ablation_effects(subject, prompts, sets, ablation=ablation, freeze_attention=freeze)
        for subject in (native, bridged)
    )
    np.testing.assert_allclose(one.loss, two.loss, atol=1e-4, rtol=1e-4)
    if freeze:
        live = ablation_effects(native, prompts, sets, ablation=ablation)
        assert np.abs(live.loss - one.loss).max() > 1e-3
        last = [index for index, heads in enumerate(sets) if min(heads)[0] == small.LAYERS - 1]
        np.testing.assert_allclose(
            live.loss[:, last], one.loss[:, last], atol=1e-4
        )  # no pattern comes after


@pytest.mark.parametrize("name", small.NATIVE)
def test_a_suffix_run_again_is_the_full_forward(name: str) -> None:
    subject = subject_of(small.build(name), bos=0, name=name)
    assert isinstance(subject, NativeSubject)
    ids = subject.ids(small.prompts().tokens)
    last = Site(small.LAYERS - 1, "resid_post")
    with torch.no_grad(), recording(subject) as record, capture(subject, [last]) as seen:
        subject.trunk(ids)
    with torch.no_grad():
        for layer in range(small.LAYERS):
            again = record.run(subject, layer, record.inputs[layer].repeat(3, 1, 1))
            for copy in again.chunk(3):
                torch.testing.assert_close(copy, seen[last], atol=1e-5, rtol=1e-5)


# First order


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", small.ALL)
def test_the_first_order_estimate_is_exact_where_heads_write_little(
    name: str, ablation: Ablation
) -> None:
    """With W_O made tiny the loss is linear in each head: the estimate is the effect, to 5 % of the
    largest.

    (Not finer: RMSNorm and softmax of some models compute in float32 whatever the weights are.)
    """
    model = small.build(name).double()
    weights = {
        "gpt_neox": "attention.dense",
        "gpt2": "attn.c_proj",
        "llama": "o_proj",
        "phi": "self_attn.dense",
        "bloom": "self_attention.dense",
    }
    for path, parameter in model.named_parameters():
        if path.endswith(weights.get(name, "out_proj") + ".weight"):
            parameter.data *= 1e-5
    subject, prompts = subject_of(model, bos=0, name=name), uneven(small.prompts())
    effects = ablation_effects(subject, prompts, SINGLE, ablation=ablation, batch_size=8)
    exact = effects.loss - effects.clean_loss[:, None]
    estimate = first_order_effects(subject, prompts, ablation=ablation, batch_size=8).reshape(
        exact.shape
    )
    np.testing.assert_allclose(estimate, exact, atol=0.05 * np.abs(exact).max())
    assert np.corrcoef(estimate.ravel(), exact.ravel())[0, 1] > 0.999
    assert np.abs(exact).max() > 0


def test_the_first_order_estimate_of_the_planted_head_has_the_right_sign(planted: Subject) -> None:
    prompts = repeated_tokens(
        known.VOCABULARY, period=20, n_prompts=4, rng=np.random.default_rng(0)
    )
    estimate = first_order_effects(planted, prompts, ablation="zero").mean(axis=0)
    others = np.delete(
        estimate.ravel(), known.N_HEADS * known.INDUCTION_HEAD[0] + known.INDUCTION_HEAD[1]
    )
    assert np.abs(others).max() <= 1e-6
    assert np.isfinite(estimate).all()


# Invariants


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", small.ALL)
def test_no_effect_changes_when_padding_is_appended(name: str, ablation: Ablation) -> None:
    subject, prompts = subject_of(small.build(name), bos=0, name=name), uneven(small.prompts())
    wide = replace(
        prompts,
        tokens=np.pad(prompts.tokens, ((0, 0), (0, 20)), constant_values=5),
        control=np.pad(prompts.control, ((0, 0), (0, 20)), constant_values=5),
    )
    sets = SINGLE[::3] + SEVERAL
    plain, other = (
        ablation_effects(subject, each, sets, ablation=ablation) for each in (prompts, wide)
    )
    np.testing.assert_allclose(other.loss, plain.loss, atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(other.accuracy, plain.accuracy)
    one, two = (first_order_effects(subject, each, ablation=ablation) for each in (prompts, wide))
    np.testing.assert_allclose(two, one, atol=1e-3, rtol=1e-3)


def test_resampling_never_takes_a_prompts_own_vectors() -> None:
    """Five prompts in batches of two would leave the last one alone, with no effect at all."""
    subject, prompts = subject_of(small.build("gpt_neox"), bos=0), small.prompts(n_prompts=5)
    for batch_size in (1, 2, 4):
        effects = ablation_effects(
            subject, prompts, SINGLE, ablation="resample", batch_size=batch_size
        )
        assert (np.abs(effects.loss - effects.clean_loss[:, None]).max(axis=1) > 1e-3).all()
    with pytest.raises(InputError, match="at least two prompts"):
        ablation_effects(subject, small.prompts(n_prompts=1), SINGLE, ablation="resample")


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_effects_do_not_depend_on_the_batch_size(ablation: Ablation) -> None:
    subject, prompts = subject_of(small.build("llama"), bos=0), uneven(small.prompts())
    whole, parts = (
        ablation_effects(subject, prompts, SINGLE, ablation=ablation, batch_size=size)
        for size in (8, 2)
    )
    np.testing.assert_allclose(parts.loss, whole.loss, atol=1e-4, rtol=1e-4)


def test_ablating_leaves_no_trace(planted: Subject) -> None:
    prompts = repeated_tokens(
        known.VOCABULARY, period=12, n_prompts=3, rng=np.random.default_rng(0)
    )
    ids = planted.ids(prompts.tokens)
    with torch.no_grad():
        before = planted.logits(ids)
        for freeze in (False, True):
            ablation_effects(planted, prompts, [[(0, 1)]], freeze_attention=freeze)
        first_order_effects(planted, prompts)
        assert torch.equal(planted.logits(ids), before)


@pytest.mark.parametrize("name", ["llama", "bloom"])
@pytest.mark.parametrize("heads", [[(1, 9)], [(7, 0)], [(1, -1)], []])
def test_a_head_that_is_not_there_is_no_ablation(name: str, heads: list[tuple[int, int]]) -> None:
    with pytest.raises(InputError, match=r"there is no L|is empty"):
        ablation_effects(subject_of(small.build(name), bos=0), small.prompts(), [heads])


@pytest.mark.parametrize("rows", [9, 4, 1])
def test_means_over_places_are_of_real_places_alone_however_the_batches_are_dealt(
    rows: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = {name: 30 + torch.randn(9, 7, 2, 3, generator=generator) for name in ("z", "other")}
    counted = torch.arange(7) < torch.tensor([7, 3, 1, 5, 7, 2, 6, 4, 7])[:, None]

    found: PlaceMeans[str] = PlaceMeans()
    for first in range(0, 9, rows):
        part = slice(first, first + rows)
        found.add({name: values[part] for name, values in vectors.items()}, counted[part])

    means = found.means()
    assert set(means) == set(vectors)
    for name, values in vectors.items():
        expected = values.numpy()[counted.numpy()].mean(axis=0, dtype=np.float64)
        np.testing.assert_array_equal(means[name].numpy(), expected.astype(np.float32))
