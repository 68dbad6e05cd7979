"""A circuit that we built by hand: every score must find it, every edit must break it there and
only there.
"""

import numpy as np
import torch

import known_mamba as known
from interp_core.loading import subject_of
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.measures.scores import copy_behaviour
from interp_core.stimuli.prompts import Prompts
from mamba_induction.data import sampled
from mamba_induction.intervene import states, taps_at, with_state, without_reads, without_taps
from mamba_induction.measure_attention import (
    copying_shares,
    offset_profiles,
    prefix_matching,
    unit_prefix_matching,
)
from mamba_induction.measure_gap import decomposition
from mamba_induction.params import OFFSETS, MambaInduction


def accuracy(subject: MambaSubject, prompts: Prompts) -> float:
    return float(copy_behaviour(subject, prompts)[0].mean())


def places(prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pairs = prompts.pairs
    return (
        torch.from_numpy(pairs.batch),
        torch.from_numpy(pairs.query),
        torch.from_numpy(pairs.earlier),
    )


def as_control(prompts: Prompts) -> Prompts:
    return Prompts(prompts.family, prompts.control, prompts.control, prompts.pairs, prompts.lengths)


def test_it_copies_and_only_where_there_is_something_to_copy(
    planted: MambaSubject, prompts: Prompts
) -> None:
    assert accuracy(planted, prompts) == 1.0
    assert accuracy(planted, as_control(prompts)) == 0.0


def test_the_profile_peaks_at_the_planted_offset_with_one(
    planted: MambaSubject, prompts: Prompts, offset: int, params: MambaInduction
) -> None:
    profile = offset_profiles(planted, prompts, params)
    expected = np.zeros((len(prompts.tokens), 2, len(OFFSETS)))
    expected[:, 0, OFFSETS.index(offset)] = 1.0
    np.testing.assert_allclose(profile, expected, atol=1e-5)
    np.testing.assert_allclose(prefix_matching(profile)[:, 0], 1.0, atol=1e-5)
    assert prefix_matching(offset_profiles(planted, prompts, params, control=True)).max() < 1e-5


def test_all_that_it_raises_is_the_attended_token(
    planted: MambaSubject, prompts: Prompts, params: MambaInduction
) -> None:
    copying, chance = copying_shares(planted, sampled(prompts, params), params)
    np.testing.assert_allclose(copying[:, 0], 1.0, atol=1e-4)
    assert chance.max() < 1e-4
    assert copying[:, 1].max() == 0.0


def test_every_channel_and_head_reads_at_the_planted_offset(
    planted: MambaSubject, prompts: Prompts, params: MambaInduction
) -> None:
    by_unit = unit_prefix_matching(planted, sampled(prompts, params), params)
    assert by_unit.shape == (2, {"mamba": 144, "mamba2": 3}[planted.config.model_type])
    np.testing.assert_allclose(by_unit[0], 1.0, atol=1e-5)  # alpha is the same for all
    assert np.abs(by_unit[1]).max() == 0.0


def test_the_scan_alone_writes_the_answer(
    planted: MambaSubject, prompts: Prompts, params: MambaInduction
) -> None:
    names, parts = decomposition(planted, sampled(prompts, params), params)
    scan = parts[:, names.index("L0 scan")]
    np.testing.assert_allclose(parts.sum(axis=1), scan, atol=1e-3)
    assert scan.min() > 10
    assert np.abs(np.delete(parts, names.index("L0 scan"), axis=1)).max() < 1e-3


def test_cutting_the_read_at_the_planted_offset_kills_copying_and_at_no_other(
    planted: MambaSubject, prompts: Prompts, offset: int
) -> None:
    batch, query, earlier = places(prompts)
    for other in OFFSETS:
        with without_reads(planted, [0], batch, query, earlier + other):
            assert accuracy(planted, prompts) == (0.0 if other == offset else 1.0), other
    with without_reads(planted, [1], batch, query, earlier + offset):
        assert accuracy(planted, prompts) == 1.0
    assert accuracy(planted, prompts) == 1.0


def test_only_the_planted_taps_are_needed_and_they_come_back(
    planted: MambaSubject, prompts: Prompts, offset: int
) -> None:
    for lag in range(1, 4):
        with without_taps(planted, [0], taps_at(planted, [lag])):
            assert accuracy(planted, prompts) == (0.0 if lag in (offset - 1, offset) else 1.0), lag
        with without_taps(planted, [1], taps_at(planted, [lag])):
            assert accuracy(planted, prompts) == 1.0
    assert accuracy(planted, prompts) == 1.0


def test_the_state_at_the_boundary_carries_the_copy_and_nothing_else_does(
    planted: MambaSubject, prompts: Prompts, offset: int
) -> None:
    clean, empty = (
        states(planted, planted.ids(tokens), 16)[0] for tokens in (prompts.tokens, prompts.control)
    )
    # What the first copy's last tokens match is written after the boundary, once the convolution
    # has passed it on.
    inside = prompts.pairs.query <= 32 - offset
    few = Prompts(
        prompts.family,
        prompts.tokens,
        prompts.control,
        type(prompts.pairs)(
            *(
                getattr(prompts.pairs, name)[inside]
                for name in ("batch", "query", "earlier", "target")
            )
        ),
        prompts.lengths,
    )
    with with_state(planted, {0: empty - clean}, 16):
        assert accuracy(planted, few) == 0.0
    with with_state(planted, {0: clean - empty}, 16):
        assert accuracy(planted, as_control(few)) == 1.0
    with with_state(planted, {0: clean.roll(1, 0) - empty}, 16):
        assert accuracy(planted, as_control(few)) < 0.2


def test_without_matching_there_is_no_copying(prompts: Prompts) -> None:
    subject = as_mamba(subject_of(known.induction_mamba(1), name="without match", bos=0))
    with torch.no_grad():
        subject.mixer(0).x_proj.weight.zero_()
    assert accuracy(subject, prompts) == 0.0
