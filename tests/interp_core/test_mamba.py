"""Mamba as a subject: activations by name, suffixes, and what it says it cannot do."""

import pytest
import torch
from torch import Tensor

from interp_core.errors import InputError
from interp_core.loading import subject_of
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.measures.scores import copy_behaviour
from interp_core.models.hooks import HookError, capture, intervene
from interp_core.models.sites import MAMBA_TAPS, Site
from interp_core.models.subject import as_transformer
from small_models import build, prompts


@pytest.fixture
def subject() -> MambaSubject:
    return as_mamba(subject_of(build("mamba"), name="small", bos=0))


def ids(batch: int = 2, length: int = 20) -> Tensor:
    return torch.randint(1, 96, (batch, length), generator=torch.Generator().manual_seed(0))


def test_every_site_fires_with_the_shape_it_promises(subject: MambaSubject) -> None:
    channels, rank, state = subject.d_inner, subject.config.time_step_rank, subject.d_state
    widths = {"mixer.in_proj": 2 * channels, "mixer.x": channels, "mixer.x_proj": rank + 2 * state}
    widths |= {"mixer.gated_y": channels}
    with capture(subject, [Site(1, name) for name in MAMBA_TAPS]) as seen:
        subject.trunk(ids())
    for site, activation in seen.items():
        assert activation.shape == (2, 20, widths.get(site.name, subject.d_model)), site


@pytest.mark.parametrize("name", sorted(MAMBA_TAPS))
def test_an_edit_of_every_site_changes_the_logits_and_nothing_afterwards(
    subject: MambaSubject, name: str
) -> None:
    clean = subject.logits(ids())
    with intervene(subject, {Site(1, name): lambda activation: activation * 1.5 + 0.1}):
        edited = subject.logits(ids())
    assert not torch.allclose(edited, clean, atol=1e-3)
    assert torch.equal(subject.logits(ids()), clean)


def test_an_edit_of_the_same_values_changes_nothing(subject: MambaSubject) -> None:
    with intervene(
        subject, {Site(layer, name): torch.clone for layer in range(3) for name in MAMBA_TAPS}
    ):
        assert torch.equal(subject.logits(ids()), subject.logits(ids()))


def test_the_convolution_is_no_site_because_the_model_never_calls_it(subject: MambaSubject) -> None:
    fired = []
    subject.mixer(0).conv1d.register_forward_hook(lambda *_: fired.append(1))
    subject.mixer(0).dt_proj.register_forward_hook(lambda *_: fired.append(1))
    with subject.stock():
        subject.trunk(ids())
    assert not fired
    with pytest.raises(InputError, match="no site is called"):
        Site(0, "mixer.conv1d")


def test_a_suffix_continues_where_the_residual_stream_was_taken(subject: MambaSubject) -> None:
    with capture(subject, [Site(2, "resid_pre")]) as seen:
        whole = subject.trunk(ids())
    assert torch.equal(subject.suffix(seen[Site(2, "resid_pre")], 2), whole)


def test_the_stock_code_and_ours_agree(subject: MambaSubject) -> None:
    with subject.stock():
        stock = subject.logits(ids())
    torch.testing.assert_close(subject.logits(ids()), stock, atol=2e-5, rtol=0)


def test_logits_are_the_unembedding_of_the_normed_stream(subject: MambaSubject) -> None:
    with capture(subject, [Site(2, "resid_post")]) as seen, subject.final_scale() as scales:
        logits = subject.logits(ids())
    split = seen[Site(2, "resid_post")] @ subject.unembedding() / scales[0][..., None]
    torch.testing.assert_close(split, logits, atol=1e-4, rtol=1e-4)


def test_behaviour_is_measured_as_for_a_transformer(subject: MambaSubject) -> None:
    stimuli = prompts()
    accuracy, loss = copy_behaviour(subject, stimuli)
    assert accuracy.shape == loss.shape == (len(stimuli.tokens),)


def test_heads_are_asked_of_a_mamba_in_vain(subject: MambaSubject) -> None:
    with pytest.raises(InputError, match="small is a mamba: it has no attention heads"):
        as_transformer(subject)
    with (
        pytest.raises(InputError, match=r"is a Mamba: it has no blocks\.0\.attn\.z"),
        capture(subject, [Site(0, "attn.z")]),
    ):
        pass
    with pytest.raises(InputError, match="there is no"), capture(subject, [Site(9, "resid_pre")]):
        pass


def test_mixers_are_asked_of_a_transformer_in_vain() -> None:
    other = subject_of(build("gpt2"), name="gpt2")
    with pytest.raises(InputError, match="gpt2 is a gpt2, not a Mamba"):
        as_mamba(other)
    with (
        pytest.raises(InputError, match="is a transformer: it has no site"),
        capture(other, [Site(0, "mixer.x")]),
    ):
        pass


def test_an_edit_that_changes_a_shape_is_an_error(subject: MambaSubject) -> None:
    with (
        pytest.raises(HookError, match="changed shape"),
        intervene(subject, {Site(0, "mixer.x"): lambda x: x[:, :-1]}),
    ):
        subject.trunk(ids())
