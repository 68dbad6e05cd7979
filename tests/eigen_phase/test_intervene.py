"""Ablations, clamped heads and arms inside and outside the subspace."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from eigen_phase.intervene import clamped_against_free
from eigen_phase.intervene_heads import head_ablations, spread_steps
from eigen_phase.intervene_subspace import Adam, start_step, subspace_arms
from eigen_phase.measure_landscape import adam_edge, attention_patterns, landscape
from eigen_phase.params import EigenPhase
from eigen_phase.run_directory import RunDirectory
from interp_core.errors import InputError


def test_the_free_arm_repeats_the_run_and_the_others_stay_on_their_side(
    section: EigenPhase, small_run: RunDirectory
) -> None:
    settings = section.controls.model_copy(
        update={"subspace_start": 0.9, "subspace_steps": 10, "subspace_refresh": 5}
    )
    assert start_step(small_run, 0.9) == 30
    early = small_run.__class__(small_run.folder, small_run.config, small_run.training)
    early.__dict__["eigenvector_steps"] = [
        0,
        10,
        20,
    ]  # so that the run's own steps from 20 to 30 are known
    arrays, report = subspace_arms(early, settings)
    assert report["start"] == 20
    rows = small_run.history["step"].tolist()
    own = small_run.history["pattern_accuracy"][[rows.index(20), rows.index(25), rows.index(30)]]
    np.testing.assert_allclose(arrays["free_accuracy"], own, atol=1e-9)
    own = small_run.history["pattern_loss"][[rows.index(20), rows.index(25), rows.index(30)]]
    np.testing.assert_allclose(arrays["free_pattern_loss"], own, rtol=1e-4)
    assert not np.allclose(arrays["inside_pattern_loss"][1:], arrays["outside_pattern_loss"][1:])
    assert 0 < report["share_of_free_steps_inside"] < 1
    assert report["change_of_pattern_loss"]["free"] == pytest.approx(own[-1] - own[0], rel=1e-3)


def test_a_run_that_never_was_below_the_start_is_refused(small_run: RunDirectory) -> None:
    with pytest.raises(InputError, match=r"no look at the Hessian before pattern accuracy 0\.0"):
        start_step(small_run, 0.0)


def test_adam_goes_on_from_the_memory_of_the_run(small_run: RunDirectory) -> None:
    adam = Adam.of(small_run, 20, small_run.model(20))
    assert adam.count == 20
    assert float(adam.square.min()) >= 0
    assert float(adam.mean.abs().sum()) > 0
    norms = sum(p.numel() for p in small_run.model().parameters() if p.ndim == 1)
    assert int((adam.decay == 0).sum()) == norms


def test_every_head_is_ablated_at_every_step(section: EigenPhase, small_run: RunDirectory) -> None:
    arrays, report = head_ablations(small_run, section.controls)
    assert arrays["effect"].shape == (len(arrays["step"]), 2, 2)
    assert (arrays["effect_low"] <= arrays["effect"]).all()
    assert (arrays["effect"] <= arrays["effect_high"]).all()
    assert report["induction"]["other_sets"] == 1
    assert len(report["induction"]["heads"]) == 1
    assert arrays["step"][0] == 0
    assert arrays["step"][-1] == 30


def test_steps_are_spread_over_the_change_of_accuracy(small_run: RunDirectory) -> None:
    steps = spread_steps(small_run, 3, among=small_run.checkpoint_steps)
    assert steps[0] == 0
    assert steps[-1] == 30
    assert len(steps) <= 3


def _runs(midpoints: Sequence[float | None]) -> dict[int, dict[str, float | None]]:
    return {seed: {"midpoint": midpoint} for seed, midpoint in enumerate(midpoints)}


def test_a_clamped_head_that_comes_early_is_called_earlier() -> None:
    free, clamped = [300.0, 310.0, 290.0, 305.0], [200.0, 210.0, 190.0, 202.0]
    found = clamped_against_free(_runs(clamped), _runs(free))
    assert found["verdict"].startswith("earlier")
    assert found["ratio"] == pytest.approx(np.exp(np.mean(np.log(np.array(clamped) / free))))
    assert found["ci"][0] < found["ratio"] < found["ci"][1] < 1
    noisy = clamped_against_free(
        _runs([300.0, 280.0, 330.0, 300.0]), _runs([290.0, 310.0, 300.0, 305.0])
    )
    assert noisy["verdict"].startswith("no difference shown")
    few = clamped_against_free(_runs([200.0, None, None]), _runs([300.0, 310.0, None]))
    assert "only 1 pairs" in few["verdict"]
    assert few["left_out"] == [1, 2]


def test_the_landscape_of_a_run_agrees_with_what_it_tracked(
    section: EigenPhase, small_run: RunDirectory
) -> None:
    settings = section.spectrum.model_copy(
        update={"probe_sizes": (small_run.training.probe_sequences,), "trace_products": 3 * 2000}
    )
    settings = settings.model_copy(update={"trace_products": 60, "density_probes": 20})
    arrays, report = landscape(small_run, settings)
    rows = [small_run.history["step"].tolist().index(step) for step in arrays["step"]]
    np.testing.assert_allclose(
        arrays["probe_top"][:, 0], small_run.history["top_eigenvalue"][rows], rtol=5e-3
    )
    width = arrays["grid"][1] - arrays["grid"][0]
    np.testing.assert_allclose(arrays["density"].sum(axis=1) * width, 1.0, atol=0.02)
    mean = (
        (arrays["density"] * arrays["grid"]).sum(axis=1) * width * small_run.training.n_parameters
    )
    tolerance = 5 * arrays["trace_error"] + 0.3 * np.abs(arrays["trace"]) + 5
    assert (np.abs(mean - arrays["trace"]) < tolerance).all()
    assert (arrays["gauss_newton"] > 0).all()
    assert np.isnan(arrays["adam_sharpness"][0])
    assert report["adam_sharpness"][0] is None
    np.testing.assert_allclose(arrays["mass_by_block"].sum(axis=2), 1.0, rtol=1e-5)
    assert report["adam_edge_of_stability"] == adam_edge(small_run.training)


def test_patterns_of_kept_steps_are_causal_and_sum_to_one(small_run: RunDirectory) -> None:
    found = attention_patterns(small_run)
    patterns = torch.from_numpy(found["patterns"])
    torch.testing.assert_close(patterns.sum(dim=-1), torch.ones(patterns.shape[:-1]))
    assert float(patterns.triu(1).abs().max()) == 0
    assert len(found["ids"]) == small_run.training.seq_length
