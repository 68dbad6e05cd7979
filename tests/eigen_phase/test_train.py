"""A run and its directory: what is written, what it rests on, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from eigen_phase.data import batch_source
from eigen_phase.data_rows import independent_rows, labelled, probe_rows
from eigen_phase.measure_alignment import (
    flat,
    gradient_of,
    next_update,
    squared_cosines,
    subspace_overlap,
)
from eigen_phase.measure_curvature import next_token_hessian
from eigen_phase.measure_transition import transition_report
from eigen_phase.model import Output, Transformer
from eigen_phase.params import EigenPhase, Training
from eigen_phase.run_directory import RunDirectory
from eigen_phase.train import keeping, train_run
from interp_core.errors import InputError
from interp_core.files.params import read_section
from interp_core.training import loop as lm_training
from interp_core.training.batches import IGNORED, Batch
from interp_core.training.history import Row
from interp_core.training.loop import Diverged
from tiny_transformer import changed


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_a_run_directory_holds_what_it_owes(small_run: RunDirectory) -> None:
    names = set(files(small_run.folder))
    assert {"config.json", "history.jsonl", "history.npz", "model_final.safetensors"} <= names
    assert not any(name.endswith((".pkl", ".pt")) for name in names)
    assert small_run.eigenvector_steps == [0, 10, 20, 30]
    assert {0, 10, 20, 30} <= set(small_run.checkpoint_steps)
    rows = [
        json.loads(line) for line in (small_run.folder / "history.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == small_run.history["step"].tolist()
    assert small_run.history["prefix_matching"].shape == (len(rows), 2, 2)
    assert small_run.history["k_composition"].shape == (len(rows), 4)
    steps, values = small_run.series("top_eigenvalue")
    assert steps.tolist() == [0, 10, 20, 30]
    assert np.isfinite(values).all()
    final = small_run.model().state_dict()
    last = small_run.model(30).state_dict()
    assert all(torch.equal(final[name], last[name]) for name in final)


def test_the_kept_eigenvectors_are_those_of_the_kept_weights(small_run: RunDirectory) -> None:
    model, training = small_run.model(20), small_run.training
    vectors = small_run.eigenvectors(20)
    row = small_run.history["step"].tolist().index(20)
    with model.explicit_attention():
        operator = next_token_hessian(
            model, *labelled(probe_rows(training), training), micro_batch=8
        )
        for i, value in enumerate(small_run.history["eigenvalues"][row]):
            residual = (operator(vectors[i]) - value * vectors[i]).norm() / abs(value)
            assert residual < 1.2 * training.lanczos_tolerance + 1e-4
    cosines = squared_cosines(vectors[:3], operator.gradient)
    np.testing.assert_allclose(small_run.history["alignment"][row], cosines, rtol=1e-3, atol=1e-7)
    assert small_run.history["alignment_mass"][row] == pytest.approx(float(cosines.sum()), rel=1e-3)
    overlap = subspace_overlap(small_run.eigenvectors(10)[:3], vectors[:3])
    assert small_run.history["persistence"][row] == pytest.approx(overlap, rel=1e-5)
    assert small_run.history["alignment_null"][row] == pytest.approx(3 / training.n_parameters)

    # Rows that the Hessian is not of: its own would share its noise.
    others = labelled(independent_rows(training), training)
    mass = float(squared_cosines(vectors[:3], gradient_of(model, *others)[0]).sum())
    assert small_run.history["alignment_independent"][row] == pytest.approx(mass, rel=1e-3)


class Stop:
    """A batch source that presses Ctrl-C at a step."""

    def __init__(self, inner: Callable[[int], Batch], at: int) -> None:
        self.inner, self.at = inner, at

    def __call__(self, step: int) -> Batch:
        if step == self.at:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return self.inner(step)


@pytest.mark.parametrize("at", [7, 20])
def test_an_interrupted_run_ends_with_the_same_bytes(
    at: int, small_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = small_run.training
    with monkeypatch.context() as patch:
        patch.setattr(
            "eigen_phase.train.batch_source", lambda *a, **k: Stop(batch_source(*a, **k), at)
        )
        with pytest.raises(KeyboardInterrupt):
            train_run("tiled-s0", training, tmp_path / "again", ceiling_draws=1000)
    assert not (tmp_path / "again").exists()
    train_run("tiled-s0", training, tmp_path / "again", ceiling_draws=1000)
    assert files(tmp_path / "again") == files(small_run.folder)


def test_the_update_that_alignment_is_measured_of_is_the_one_that_is_made(
    section: EigenPhase,
) -> None:
    training = section.runs["tiled-s0"]
    model = Transformer(training.shape, seed=0)
    optimizer = torch.optim.AdamW(
        lm_training.parameter_groups(model, training.weight_decay), lr=0.01, betas=training.betas
    )
    source = batch_source(training.data_settings, rows=8, seed=0)
    for step in range(4):
        gradient, _ = gradient_of(model, *source(step))
        expected = next_update(optimizer, model, gradient, rate=0.01, clip=training.clip)
        before = flat(list(model.parameters()))
        start = 0
        for parameter in model.parameters():
            parameter.grad = gradient[start : start + parameter.numel()].view_as(parameter).clone()
            start += parameter.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
        torch.testing.assert_close(
            flat(list(model.parameters())) - before, expected, rtol=1e-4, atol=1e-7
        )


def test_squared_cosines_of_a_random_direction_are_one_in_p() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(400, 8, generator=generator)).Q.T
    masses = [
        float(squared_cosines(vectors, torch.randn(400, generator=generator)).sum())
        for _ in range(500)
    ]
    assert np.mean(masses) == pytest.approx(8 / 400, rel=0.1)
    assert float(squared_cosines(vectors, vectors[3]).sum()) == pytest.approx(1.0)
    assert float(squared_cosines(vectors, torch.zeros(400)).sum()) == 0.0
    assert subspace_overlap(vectors, vectors[:3]) == pytest.approx(1.0)


def test_weights_are_kept_densely_where_accuracy_moves(section: EigenPhase) -> None:
    training = changed(
        section.training, checkpoint_interval=30, eigen_interval=30, checkpoint_change=0.2
    )
    keep = keeping(training)
    accuracy = {0: 0.0, 5: 0.1, 10: 0.3, 15: 0.35, 20: 0.6, 25: 0.65, 30: 0.7}
    history: list[Row] = []
    kept = []
    for step, value in accuracy.items():
        history.append({"step": step, "pattern_accuracy": value})
        if keep(history):
            kept.append(step)
    assert kept == [0, 10, 20, 30]


def test_a_diverging_run_keeps_its_history_and_says_where(
    section: EigenPhase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflowing(Transformer):
        """Its logits leave the range of numbers at the thirteenth batch."""

        batches = 0

        def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Output:
            self.batches += self.training
            logits = super().forward(input_ids, use_cache).logits
            return Output(logits * float("inf") if self.batches == 13 else logits)

    training = changed(section.training, track_top_k_eigenvalues=0)
    monkeypatch.setattr("eigen_phase.train.Transformer", Overflowing)
    with pytest.raises(Diverged, match=r"the loss is nan at step 12.*history up to there is in"):
        train_run("wild", training, tmp_path / "wild", ceiling_draws=1000)
    run = RunDirectory.open(tmp_path / "wild")
    assert run.diverged is not None
    assert run.history["step"].tolist() == [0, 1, 2, 4, 5, 8, 10]
    assert not (run.folder / "model_final.safetensors").exists()


def test_half_written_and_foreign_directories_are_refused(
    small_run: RunDirectory, tmp_path: Path
) -> None:
    import shutil

    with pytest.raises(InputError, match=r"not a run directory: it has no config\.json"):
        RunDirectory.open(tmp_path)
    half = tmp_path / "half"
    shutil.copytree(small_run.folder, half)
    (half / "history.npz").unlink()
    with pytest.raises(InputError, match=r"half-written: history\.npz is missing"):
        RunDirectory.open(half)
    other = tmp_path / "other"
    shutil.copytree(small_run.folder, other)
    (other / "files.json").unlink()  # as another version would have written it
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"version": 0}))
    with pytest.raises(InputError, match="version 0, but this program reads version 2"):
        RunDirectory.open(other)
    (other / "config.json").write_text(json.dumps(config | {"name": "../../thesis"}))
    with pytest.raises(
        InputError, match=r"config.json: name: '../../thesis' becomes a file's name"
    ):
        RunDirectory.open(other)
    with pytest.raises(InputError, match="no weights of step 3; kept"):
        small_run.model(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "d_model"),
        ({"track_top_k_eigenvalues": 10**6}, "is more than the model's"),
        ({"eigen_interval": 0}, "greater than 0"),
        (
            {"seq_length": 5, "data": "placed", "pattern_length": (2, 9)},
            "a pattern of 9 tokens is longer",
        ),
        ({"warmup": 30}, "warmup"),
        ({"max_products": 3}, "max_products"),
        ({"test_data": "unrepeated"}, "test_data"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
    section: EigenPhase, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        changed(section.training, **changes)


def test_the_laptop_profiles_transformer_turns_and_stays_below_the_oracle(tmp_path: Path) -> None:
    """Real size, Hessian left out: induction heads form abruptly, and no target is predicted that
    cannot be.
    """
    laptop = read_section("eigen_phase", EigenPhase, "laptop")
    train_run(
        "tiled-s1",
        changed(laptop.runs["tiled-s1"], track_top_k_eigenvalues=0),
        tmp_path / "tiled-s1",
        ceiling_draws=laptop.ceiling_draws,
    )
    run = RunDirectory.open(tmp_path / "tiled-s1")
    report = transition_report([run], laptop.transition)["runs"]["tiled-s1"]
    assert report["verdict"] == "transition", report["sentence"]
    assert 0.9 < run.history["pattern_accuracy"][-1] <= run.config["bounds"]["ceiling_high"]
    assert run.history["prefix_matching"][-1].max() > 0.4
    assert run.history["prefix_matching"][0].max() < 0.1
    assert run.history["loss"][-1] > run.config["bounds"]["entropy_floor"] - 0.1


def test_a_masked_loss_has_no_gradient_from_predictable_targets(section: EigenPhase) -> None:
    training: Training = changed(section.training, leave_out_predictable=True)
    rows = probe_rows(training)
    _, labels = labelled(rows, training)
    assert (labels.numpy()[rows.predictable] == IGNORED).all()
    assert rows.predictable.any()
