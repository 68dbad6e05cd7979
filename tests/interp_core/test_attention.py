"""Single entries of the pattern, against eager attention and against TransformerLens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import small_models as small
from interp_core.loading import subject_of
from interp_core.measures.scores import attention_keys, attention_scores, score_heads
from interp_core.models import attention
from interp_core.models.attention import AttentionCall, fused_attention
from interp_core.models.hooks import capture
from interp_core.models.lens import BridgeSubject, to_transformer_lens
from interp_core.models.native import NativeSubject
from interp_core.models.sites import Site
from interp_core.stimuli.prompts import Prompts


def eager_patterns(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """[prompt, layer, head, query, key] as the model's own eager attention has them."""
    before = model.config._attn_implementation or "sdpa"
    model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model(torch.as_tensor(tokens), output_attentions=True).attentions
    model.set_attn_implementation(before)
    return torch.stack(patterns, dim=1).double().numpy()


def expected_scores(patterns: np.ndarray, prompts: Prompts) -> dict[str, np.ndarray]:
    """Means over each prompt's pairs, by a loop over prompts."""
    pairs = prompts.pairs
    return {
        name: np.stack(
            [
                patterns[i][:, :, pairs.query[pairs.batch == i], key[pairs.batch == i]].mean(
                    axis=-1
                )
                for i in range(len(prompts.tokens))
            ]
        )
        for name, key in attention_keys(pairs).items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", small.ALL)
def test_scores_are_those_of_eager_attention(name: str, dtype: torch.dtype) -> None:
    prompts, model = small.prompts(), small.build(name, dtype=dtype)
    expected = expected_scores(eager_patterns(model, prompts.tokens), prompts)
    scores = attention_scores(subject_of(model, bos=0, name=name), prompts, batch_size=2)
    assert scores.keys() == expected.keys()
    for key in expected:
        np.testing.assert_allclose(scores[key], expected[key], atol=1e-5, err_msg=key)
        assert expected[key].std() > 0.01  # the models attend to something


def test_what_calls_the_registry_is_native_and_the_others_bridged() -> None:
    kinds = {name: type(subject_of(small.build(name), bos=0)) for name in small.ALL}
    assert kinds == dict.fromkeys(small.NATIVE | small.FOUND, NativeSubject) | dict.fromkeys(
        small.BRIDGED, BridgeSubject
    )


@pytest.mark.parametrize("name", small.ALL)
def test_scores_are_those_of_transformer_lens_patterns(name: str) -> None:
    prompts, subject = small.prompts(), subject_of(small.build(name), bos=0, name=name)
    lens = to_transformer_lens(subject)
    with torch.no_grad():
        _, cache = lens.run_with_cache(torch.as_tensor(prompts.tokens))
    patterns = np.stack(
        [cache[f"blocks.{layer}.attn.hook_pattern"].double() for layer in range(small.LAYERS)],
        axis=1,
    )
    expected = expected_scores(patterns, prompts)
    for key, score in attention_scores(subject, prompts).items():
        np.testing.assert_allclose(score, expected[key], atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", small.NATIVE)
def test_in_bfloat16_entries_are_exact_for_the_models_own_queries_and_keys(name: str) -> None:
    """Eager attention rounds its patterns to bfloat16; the entries do not, given the rounded q and
    k.
    """
    prompts = small.prompts()
    subject = subject_of(small.build(name, dtype=torch.bfloat16), bos=0, name=name)
    scores = attention_scores(subject, prompts)
    sites = [
        Site(layer, f"attn.{part}") for layer in range(small.LAYERS) for part in ("rot_q", "rot_k")
    ]
    with torch.no_grad(), capture(subject, sites) as seen:
        subject.trunk(subject.ids(prompts.tokens))
    patterns = []
    for layer in range(small.LAYERS):
        query, key = (
            seen[Site(layer, f"attn.{part}")].double().transpose(1, 2)
            for part in ("rot_q", "rot_k")
        )
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        patterns.append(
            logits.masked_fill(torch.ones_like(logits).triu(1) > 0, -torch.inf).softmax(-1)
        )
    expected = expected_scores(torch.stack(patterns, dim=1).numpy(), prompts)
    for name_of_score, score in scores.items():
        np.testing.assert_allclose(score, expected[name_of_score], atol=1e-5, err_msg=name_of_score)


@pytest.mark.parametrize("name", small.NATIVE)
def test_in_bfloat16_scores_are_near_those_of_eager_attention(name: str) -> None:
    prompts, model = small.prompts(), small.build(name, dtype=torch.bfloat16)
    expected = expected_scores(eager_patterns(model, prompts.tokens), prompts)
    for key, score in attention_scores(subject_of(model, bos=0, name=name), prompts).items():
        np.testing.assert_allclose(score, expected[key], atol=0.02, err_msg=key)


@pytest.mark.parametrize("name", small.NATIVE)
def test_a_bridged_subject_scores_as_the_native_one(name: str) -> None:
    prompts = small.prompts()
    keys = attention_keys(prompts.pairs)
    native = subject_of(small.build(name), bos=0, name=name)
    bridged = BridgeSubject(name, small.build(name), None, 0)
    scores = [
        score_heads(
            subject,
            prompts.tokens,
            prompts.pairs,
            keys,
            behaviour=True,
            contributions=True,
            batch_size=2,
        )
        for subject in (native, bridged)
    ]
    assert scores[0].heads.keys() == scores[1].heads.keys()
    for key, score in scores[0].heads.items():
        np.testing.assert_allclose(score, scores[1].heads[key], atol=1e-4, rtol=1e-4, err_msg=key)
    np.testing.assert_allclose(scores[0].loss, scores[1].loss, rtol=1e-4)
    np.testing.assert_array_equal(scores[0].accuracy, scores[1].accuracy)


@contextmanager
def seen_calls(subject: NativeSubject) -> Iterator[dict[int, AttentionCall]]:
    calls: dict[int, AttentionCall] = {}

    def keep(layer: int, rows: Any) -> None:
        calls[layer] = rows

    with subject.observing(keep):
        yield calls


@pytest.mark.parametrize("name", small.NATIVE)
def test_with_left_padding_the_masked_positions_get_nothing_and_the_rest_is_eager(
    name: str,
) -> None:
    model = small.build(name)
    subject = subject_of(model, bos=0, name=name)
    assert isinstance(subject, NativeSubject)
    ids = torch.as_tensor(small.prompts(n_prompts=2).tokens)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    with torch.no_grad(), seen_calls(subject) as calls:
        model(ids, attention_mask=mask)
    model.set_attn_implementation("eager")
    eager = model(ids, attention_mask=mask, output_attentions=True).attentions
    for layer, call in calls.items():
        pattern = call.pattern()
        torch.testing.assert_close(pattern[0], eager[layer][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(pattern[1, :, 6:], eager[layer][1, :, 6:], atol=1e-5, rtol=0)
        assert pattern[1, :, 6:, :6].max() == 0
        batch, query = torch.tensor([0, 1, 1]), torch.tensor([4, 20, 9])
        keys = torch.tensor([[2, 7, 3], [0, 20, 9]])
        entries = call.entries(batch, query, keys)
        torch.testing.assert_close(
            entries, torch.stack([eager[layer][batch, :, query, key] for key in keys])
        )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_every_kernel_gives_the_softmax_and_its_log_sum_exp(kv_heads: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 300, 8, generator=generator)
    key, value = (torch.randn(2, kv_heads, 300, 8, generator=generator) for _ in range(2))
    allowed = torch.ones(300, 300, dtype=torch.bool).tril().expand(2, 1, -1, -1).clone()
    if masked:
        allowed[1, :, 50:, 10:40] = False
    scores = query @ key.repeat_interleave(4 // kv_heads, dim=1).transpose(-1, -2) * 0.3
    scores = scores.masked_fill(~allowed, -torch.inf)
    want = scores.softmax(-1) @ value.repeat_interleave(4 // kv_heads, dim=1), scores.logsumexp(-1)
    additive = torch.zeros(2, 1, 300, 300).masked_fill(~allowed, -torch.inf)
    masks = [allowed, additive] if masked else [None, allowed]
    for mask in masks:
        got = attention.fused_attention(query, key, value, mask, 0.3)
        torch.testing.assert_close(got[0], want[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(got[1], want[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", small.NATIVE)
def test_watching_leaves_the_output_of_the_model_as_it_was(name: str) -> None:
    subject = subject_of(small.build(name), bos=0, name=name)
    assert isinstance(subject, NativeSubject)
    ids = subject.ids(small.prompts().tokens)
    with torch.no_grad():
        before = subject.logits(ids)
        with seen_calls(subject):
            during = subject.logits(ids)
    torch.testing.assert_close(during, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", small.NATIVE)
def test_no_whole_pattern_is_ever_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that any operation of a scoring run returns is smaller than one head's pattern
    of the batch.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            for part in result if isinstance(result, tuple) else (result,):
                if isinstance(part, Tensor):
                    self.entries = max(self.entries, part.numel())
            return result

    longer: dict[str, Any] = {"n_positions" if name == "gpt2" else "max_position_embeddings": 1024}
    model = small.build(name, **longer)
    subject = subject_of(model, bos=0, name=name)
    prompts = small.prompts(n_prompts=2, period=40)
    tokens = np.pad(prompts.tokens, ((0, 0), (0, 1024 - prompts.tokens.shape[1])))
    with Largest() as largest:
        score_heads(
            subject, tokens, prompts.pairs, attention_keys(prompts.pairs), contributions=True
        )
    assert largest.entries < 2 * 1024 * 1024


def test_vectors_that_do_not_lie_in_one_run_are_read_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 4, 8, 16, generator=generator).transpose(-1, -2) for _ in range(3)
    )
    out, lse = fused_attention(query, key, value, None, 0.3)
    plain, plain_lse = fused_attention(
        query.contiguous(), key.contiguous(), value.contiguous(), None, 0.3
    )
    assert torch.equal(out, plain)
    assert torch.equal(lse, plain_lse)


def test_a_sink_of_each_token_takes_its_share() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 9, 8, generator=generator) for _ in range(3))
    sinks = torch.randn(2, 4, 9, generator=generator)
    out, _ = fused_attention(query, key, value, None, 0.3, sinks=sinks)

    scores = (query @ key.transpose(-1, -2) * 0.3).masked_fill(
        torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf
    )
    pattern = torch.cat([scores, sinks[..., None]], dim=-1).softmax(dim=-1)[..., :-1]
    assert torch.allclose(out, pattern @ value, atol=1e-6)
