"""Ablations, clamped heads and arms inside and outside the subspace."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.sparse.linalg import eigsh

from eigen_phase.data import batch_source
from eigen_phase.data_rows import held_out_rows, labelled, probe_rows
from eigen_phase.intervene import clamped_against_free
from eigen_phase.intervene_heads import head_ablations, spread_steps
from eigen_phase.intervene_subspace import (
    ARMS,
    Adam,
    Arm,
    changed_step,
    start_step,
    subspace_arms,
)
from eigen_phase.measure_alignment import flat, gradient_of
from eigen_phase.measure_curvature import Operator, adam_preconditioned, next_token_hessian
from eigen_phase.measure_heads import attention_scores
from eigen_phase.measure_landscape import (
    adam_edge,
    attention_patterns,
    landscape,
    largest_course,
)
from eigen_phase.params import EigenPhase
from eigen_phase.run_directory import RunDirectory
from interp_core.errors import InputError
from interp_core.statistics.heads import Head
from tiny_transformer import Products, changed


def test_the_free_arm_repeats_the_run_and_the_others_stay_on_their_side(
    section: EigenPhase, small_run: RunDirectory
) -> None:
    settings = section.controls.model_copy(
        update={
            "subspace_start": 0.9,
            "subspace_until": 1.0,
            "subspace_steps": 10,
            "subspace_refresh": 5,
        }
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
    assert report["first_accuracy"] == pytest.approx(own[0], abs=1e-9)
    own = small_run.history["pattern_loss"][[rows.index(20), rows.index(25), rows.index(30)]]
    np.testing.assert_allclose(arrays["free_pattern_loss"], own, rtol=1e-4)
    assert not np.allclose(arrays["inside_pattern_loss"][1:], arrays["outside_pattern_loss"][1:])
    assert 0 < report["share_of_free_steps_inside"] < 1

    # What each arm took: only what is inside, nothing of it, or all; and how long that was.
    for arm in ("inside", "long", "random", "random_long", "own_inside"):
        np.testing.assert_allclose(arrays[f"{arm}_taken"], 1.0, rtol=1e-3)
    for arm in ("outside", "own_outside"):
        assert (arrays[f"{arm}_taken"] < 1e-6).all()
        assert arrays[f"{arm}_inside"].mean() > 1e-4
    for arm in ("free", "long", "random_long"):
        np.testing.assert_allclose(arrays[f"{arm}_length"], 1.0, rtol=1e-3)
    np.testing.assert_allclose(arrays["inside_length"], arrays["inside_inside"] ** 0.5, rtol=1e-3)
    np.testing.assert_allclose(arrays["short_length"], arrays["short_inside"] ** 0.5, rtol=1e-3)
    for name in ARMS:
        # All begin where the free one does; what a report says of an arm is of its own arrays.
        assert arrays[f"{name}_pattern_loss"][0] == arrays["free_pattern_loss"][0]
        assert report["length"][name] == pytest.approx(arrays[f"{name}_length"].mean())
        assert report["final_accuracy"][name] == arrays[f"{name}_accuracy"][-1]
    assert set(report["length"]) == set(ARMS)
    assert report["k"] == small_run.training.track_top_k_eigenvalues == 3
    assert report["null_share"] == pytest.approx(3 / small_run.training.n_parameters)
    assert report["change_of_pattern_loss"]["free"] == pytest.approx(own[-1] - own[0], rel=1e-3)


def test_arms_end_where_the_free_one_has_arrived(
    section: EigenPhase, small_run: RunDirectory
) -> None:
    changes = {"subspace_start": 0.9, "subspace_until": 0.01, "subspace_steps": 8}
    settings = section.controls.model_copy(update=changes | {"subspace_refresh": 4})
    arrays, report = subspace_arms(small_run, settings)
    assert report["steps"] == len(arrays["step"]) == 4

    # What it has at a look is enough; anything more is not.
    reached = float(arrays["free_accuracy"][1])
    for until, steps in ((reached, 4), (np.nextafter(reached, 1.0), 8)):
        changed_end = settings.model_copy(update={"subspace_until": until})
        assert subspace_arms(small_run, changed_end)[1]["steps"] == steps


def _others_space(run: RunDirectory, step: int, scale: torch.Tensor) -> torch.Tensor:
    """The three eigenvectors largest by magnitude of S H S, by another library."""
    rows = labelled(probe_rows(run.training), run.training)
    model = run.model(step)
    with model.explicit_attention():
        hessian = next_token_hessian(model, *rows, micro_batch=len(rows[0]))
        scaled = Operator(lambda vector: scale * hessian(scale * vector), scale)
        vectors = eigsh(Products(scaled), k=3, which="LM")[1]

    return torch.from_numpy(vectors.T.copy()).to(scale)


@pytest.mark.parametrize("kind", [kind for kind in ARMS if not kind.startswith("random")])
def test_an_arm_steps_in_the_space_that_its_name_says(kind: str, small_run: RunDirectory) -> None:
    training, model = small_run.training, small_run.model(20)
    first, second = training.betas
    mean, square = small_run.adam(20)
    scale = torch.ones_like(mean)
    if kind.startswith("own"):
        scale = ((square / (1 - second**20)).sqrt() + 1e-8).rsqrt()

    arm = Arm.at(small_run, 20, kind)
    arm.look()
    assert arm.space is not None
    torch.testing.assert_close(arm.space @ arm.space.T, torch.eye(3), atol=1e-3, rtol=0)
    expected = _others_space(small_run, 20, scale)
    assert float((arm.space @ expected.T).norm() ** 2) == pytest.approx(3.0, rel=1e-3)

    # AdamW's next step by its formula, and its share in that space, in the arm's geometry.
    source = batch_source(training.data_settings, rows=training.batch_size, seed=training.seed)
    gradient = gradient_of(model, *source(20))[0]
    gradient = gradient * min(1.0, training.clip / float(gradient.norm()))
    mean = (first * mean + (1 - first) * gradient) / (1 - first**21)
    square = (second * square + (1 - second) * gradient**2) / (1 - second**21)
    decay = Adam.of(small_run, 20, model).decay * flat(list(model.parameters()))
    step = -(mean / (square.sqrt() + 1e-8) + decay) / scale

    share = float((expected @ step).norm() / step.norm()) ** 2
    assert arm.run(1, 1)["inside"][0] == pytest.approx(share, rel=2e-2)


@pytest.mark.parametrize("kind", ["random", "random_long"])
def test_a_random_arm_draws_as_many_directions_anew_at_every_look(
    kind: str, small_run: RunDirectory
) -> None:
    arm = Arm.at(small_run, 20, kind)
    arm.run(4, 2)
    size, generator = small_run.training.n_parameters, torch.Generator().manual_seed(0)
    drawn = [torch.randn(size, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    space = arm.space
    assert space is not None
    assert space.shape == (3, size)

    # All of the second draw, nothing of the first.
    bases = [torch.linalg.qr(one).Q.to(space) for one in drawn]
    overlaps = [float((space @ basis).norm() ** 2) for basis in bases]
    assert overlaps[1] == pytest.approx(3.0, rel=1e-5)
    assert overlaps[0] < 0.1


def test_the_space_of_eigenvectors_is_found_anew_at_the_arms_own_weights(
    small_run: RunDirectory,
) -> None:
    arm = Arm.at(small_run, 20, "free")
    arm.run(4, 2)
    again = Arm.at(small_run, 20, "free")
    again.run(2, 2)
    again.look()
    assert arm.space is not None
    assert again.space is not None
    assert float((arm.space @ again.space.T).norm() ** 2) == pytest.approx(3.0, rel=1e-3)

    again = Arm.at(small_run, 20, "free")
    again.look()
    assert again.space is not None
    assert float((arm.space @ again.space.T).norm() ** 2) < 2.99


def test_adams_gradients_are_clipped_as_in_training() -> None:
    direction = torch.tensor([0.6, -0.8, 0.0])
    weights = torch.zeros(3)

    def step(gradient: torch.Tensor, clip: float) -> torch.Tensor:
        adam = Adam(torch.ones(3), torch.ones(3), 5, torch.zeros(3), (0.9, 0.98), clip)
        return adam.step(gradient, weights, rate=0.1)

    torch.testing.assert_close(step(10 * direction, 1.0), step(direction, 1e9))
    torch.testing.assert_close(step(0.5 * direction, 1.0), step(0.5 * direction, 1e9))
    assert not torch.allclose(step(10 * direction, 1.0), step(10 * direction, 1e9))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("free", [3.0, 4.0]),
        ("inside", [3.0, 0.0]),
        ("outside", [0.0, 4.0]),
        ("own_outside", [0.0, 4.0]),
        ("short", [1.8, 2.4]),
        ("long", [5.0, 0.0]),
        ("random_long", [5.0, 0.0]),
    ],
)
def test_an_arm_changes_a_step_as_its_name_says(kind: str, expected: list[float]) -> None:
    step, inside = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])
    torch.testing.assert_close(changed_step(kind, step, inside), torch.tensor(expected))


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


def test_where_nothing_moved_yet_adams_geometry_is_that_of_epsilon_alone() -> None:
    still = Adam(torch.zeros(3), torch.zeros(3), 1, torch.zeros(3), (0.9, 0.98), 1.0)
    torch.testing.assert_close(still.scale(), torch.full((3,), 1e4))


def test_every_head_is_ablated_at_every_step(section: EigenPhase, small_run: RunDirectory) -> None:
    arrays, report = head_ablations(small_run, section.controls)
    assert arrays["effect"].shape == (len(arrays["step"]), 2, 2)
    assert (arrays["effect_low"] <= arrays["effect"]).all()
    assert (arrays["effect"] <= arrays["effect_high"]).all()
    # Two heads a layer: one other set, and no test with it.
    others = report["induction"]["others"]
    assert others["random"]["n"] == 1
    assert others["p"] is None
    assert others["says"].startswith("no test possible")
    assert report["induction"]["change"]["unit"] == "rows"

    # Of two heads a layer one is taken out: the best of its kind.
    rows = held_out_rows(small_run.training, small_run.training.test_settings)
    scores = attention_scores(small_run.model(), rows)
    for kind, score in (("induction", "prefix_matching"), ("previous_token", "previous_token")):
        layer, head = np.unravel_index(scores[score].argmax(), scores[score].shape)
        assert report[kind]["heads"] == [str(Head(int(layer), int(head)))]

    assert arrays["step"][0] == 0
    assert arrays["step"][-1] == 30


def test_steps_are_spread_over_the_change_of_accuracy(small_run: RunDirectory) -> None:
    steps = spread_steps(small_run, 3, among=small_run.checkpoint_steps)
    assert steps[0] == 0
    assert steps[-1] == 30
    assert len(steps) <= 3


def _runs(midpoints: Sequence[float | None]) -> dict[int, dict[str, float | None]]:
    return {seed: {"midpoint": midpoint} for seed, midpoint in enumerate(midpoints)}


FREE = [300.0, 310.0, 290.0, 305.0]


def test_a_clamped_head_that_comes_early_is_called_earlier_than_free_and_than_its_controls() -> (
    None
):
    clamped, itself = [200.0, 210.0, 190.0, 202.0], [280.0, 330.0, 280.0, 310.0]
    runs = {"clamped": _runs(clamped), "itself": _runs(itself)}
    found = clamped_against_free(runs, _runs(FREE))

    ratio = found["over_free"]["clamped"]["ratio"]
    assert ratio["value"] == pytest.approx(np.exp(np.mean(np.log(np.array(clamped) / FREE))))
    assert ratio["low"] < ratio["value"] < ratio["high"] < 1
    assert "earlier than free" in found["verdict"]
    assert "earlier than itself" in found["verdict"]

    # A control that does as much takes the claim away.
    same = clamped_against_free({"clamped": _runs(clamped), "itself": _runs(clamped)}, _runs(FREE))
    assert "no difference from itself shown" in same["verdict"]


def test_a_seed_without_a_date_leaves_no_ratio() -> None:
    runs = {"clamped": _runs([200.0, None, 190.0, 202.0]), "itself": _runs(FREE)}
    found = clamped_against_free(runs, _runs(FREE))
    assert found["over_free"]["clamped"]["ratio"] is None
    assert found["over_free"]["clamped"]["dated"] == 3
    assert "no comparison with free: dated in 3 of 4 pairs" in found["verdict"]


def test_the_landscape_of_a_run_agrees_with_what_it_tracked(
    section: EigenPhase, small_run: RunDirectory
) -> None:
    settings = section.spectrum.model_copy(
        update={
            "probe_sizes": (small_run.training.probe_sequences,),
            "probe_runs": (small_run.name,),
            "trace_products": 60,
            "density_probes": 20,
        }
    )
    arrays, report = landscape(small_run, settings)
    rows = [small_run.history["step"].tolist().index(step) for step in arrays["step"]]
    np.testing.assert_allclose(
        arrays["probe_top"][:, 0, 0], small_run.history["top_eigenvalue"][rows], rtol=2e-2
    )
    assert not np.allclose(arrays["probe_top"][:, 0, 0], arrays["probe_top"][:, 0, 1], rtol=1e-3)
    batches = report["probe_top"][0]
    assert batches["unit"] == "batches"
    pair = arrays["probe_top"][0, 0]
    reach = stats.t.ppf(0.975, 1) * pair.std(ddof=1) / np.sqrt(2)
    assert batches["high"] == pytest.approx(pair.mean() + reach, rel=1e-6)
    width = arrays["grid"][1] - arrays["grid"][0]
    np.testing.assert_allclose(arrays["density"].sum(axis=1) * width, 1.0, atol=0.02)
    mean = (
        (arrays["density"] * arrays["grid"]).sum(axis=1) * width * small_run.training.n_parameters
    )
    tolerance = 5 * arrays["trace_error"] + 0.3 * np.abs(arrays["trace"]) + 5
    assert (np.abs(mean - arrays["trace"]) < tolerance).all()
    assert (arrays["gauss_newton"] > 0).all()
    assert arrays["adam_step"].tolist() == [10, 20, 30]
    assert (arrays["adam_sharpness"] > 0).all()
    above = arrays["adam_step"][arrays["adam_sharpness"] > report["adam_edge_of_stability"]]
    np.testing.assert_array_equal(report["adam_steps_above_edge"], above)
    np.testing.assert_allclose(arrays["mass_by_block"].sum(axis=2), 1.0, rtol=1e-5)
    assert report["adam_edge_of_stability"] == adam_edge(small_run.training)

    first = dict(zip(arrays["block_step"].tolist(), arrays["mass_by_block"][:, 0], strict=True))
    for step, said in report["largest_block"].items():
        block, mass = said.rsplit(" ", 1)
        assert block == arrays["blocks"][first[int(step)].argmax()]
        assert float(mass) == pytest.approx(first[int(step)].max(), abs=0.005)


def test_adams_sharpness_is_as_fine_as_its_own_tolerance_asks(
    section: EigenPhase, small_run: RunDirectory
) -> None:
    """Whatever the tolerance of the tracked eigenvalues is; another library has the values."""
    training = changed(small_run.training, lanczos_tolerance=0.5)
    run = small_run.__class__(small_run.folder, small_run.config, training)
    quick = {"density_probes": 1, "density_steps": 2, "trace_products": 3, "probe_sizes": ()}
    settings = section.spectrum.model_copy(update=quick | {"largest_tolerance": 1e-4})
    found = landscape(run, settings)[0]["adam_sharpness"]

    rows = labelled(probe_rows(training, rows=training.batch_size), training)
    expected = []
    for step in (10, 20, 30):
        model = run.model(step)
        with model.explicit_attention():
            hessian = next_token_hessian(model, *rows, micro_batch=len(rows[0]))
            square = run.adam(step)[1]
            scaled = adam_preconditioned(
                hessian, square, step=step, beta=training.betas[1], epsilon=1e-8
            )
            expected += eigsh(Products(scaled), k=1, which="LA")[0].tolist()

    np.testing.assert_allclose(found, expected, rtol=1e-4)
    coarse = settings.model_copy(update={"largest_tolerance": 0.5})
    assert not np.allclose(landscape(run, coarse)[0]["adam_sharpness"], expected, rtol=1e-3)


def test_the_course_of_the_largest_is_that_of_the_tracked_one_on_the_same_rows(
    section: EigenPhase, small_run: RunDirectory
) -> None:
    rows = small_run.training.probe_sequences
    settings = section.spectrum.model_copy(
        update={"largest_sequences": rows, "largest_tolerance": 1e-4}
    )
    found = largest_course(small_run, settings)
    steps, tracked = small_run.series("top_eigenvalue")
    np.testing.assert_array_equal(found["largest_step"], steps)
    np.testing.assert_allclose(found["largest"], tracked, rtol=1e-3)

    more = largest_course(small_run, settings.model_copy(update={"largest_sequences": 4 * rows}))
    assert not np.allclose(more["largest"], tracked, rtol=1e-3)


def test_patterns_of_kept_steps_are_causal_and_sum_to_one(small_run: RunDirectory) -> None:
    found = attention_patterns(small_run)
    patterns = torch.from_numpy(found["patterns"])
    torch.testing.assert_close(patterns.sum(dim=-1), torch.ones(patterns.shape[:-1]))
    assert float(patterns.triu(1).abs().max()) == 0
    assert len(found["ids"]) == small_run.training.seq_length
