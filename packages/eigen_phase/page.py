"""The study's part of the page, and the same page of one run directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from eigen_phase.measure_transition import transition_report
from eigen_phase.run_directory import RunDirectory
from eigen_phase.study import Eigen, prepare
from interp_core.console.holding import hold
from interp_core.files.artifacts import load_arrays, load_json
from interp_core.files.folders import adding_to
from interp_core.page import views
from interp_core.page.document import say, write_own
from interp_core.page.study_page import Caption, Part, Words, there
from interp_core.page.views import View

Report = Mapping[str, Any]

WORDS = Words(
    place=4,
    question="What does the Hessian's spectrum do while induction heads form?",
    verdict=(
        "No early warning shown in curvature: it peaks at {published.peak_over_step:interval} of "
        "the step."
    ),
    not_found=(
        "An eigenvalue that announces the transition: its rise is dated in too few seeds for a "
        "lead or a lag.",
        "A head whose attention leads. Weights that match equal tokens do, but they come too where "
        "no induction follows.",
        "A step in alignment on the same batch, or in the persistence of the subspace, in any "
        "tiled training.",
        "That the previous token is what a clamped head gives: no difference from its control is "
        "shown.",
        "The transition at the literature's scale: profile paper has not been run.",
    ),
    captions={
        "ablation.png": Caption(
            "Change of pattern accuracy without each head over the training, and without the best "
            "pairs at its end.",
            "The other heads, and the other five pairs of the same layer: too few for a test.",
        ),
        "alignment.png": Caption(
            "Share of gradients and steps in the top subspace, and what steps inside and outside "
            "it do.",
            "What a random direction would have.",
        ),
        "controls.png": Caption(
            "Pattern accuracy of every run, with the oracle's ceiling.",
            "Runs in which induction cannot form, or cannot help.",
        ),
        "lags_*.png": Caption(
            "When each metric turns, as a share of the step at which accuracy does.",
            "1 is the transition itself; intervals are over trainings.",
        ),
        "published_lags_*.png": Caption(
            "The same over ten trainings of 1,500 steps.",
            "1 is the transition itself; intervals are over trainings.",
        ),
        "matrices.png": Caption(
            "Trace, Gauss-Newton, Adam's sharpness, and the top eigenvalue on probe batches of "
            "several sizes.",
            "Probe batches of other sizes.",
        ),
        "phase_*.png": Caption(
            "Every quantity of one training over the same steps.",
            "Chance and ceiling of the accuracy; the null of the alignment.",
        ),
        "seeds_*.png": Caption(
            "Accuracy, heads and curvature of every seed over its own midpoint.",
            "The other seeds.",
        ),
    },
)


@dataclass(frozen=True)
class Course:
    """The largest eigenvalue of a training on more rows than are tracked, at every look."""

    rows: int
    steps: Int[np.ndarray, " look"]
    values: Float[np.ndarray, " look"]

    def at(self, steps: Int[np.ndarray, " step"]) -> Float[np.ndarray, " step"]:
        """The value at each of these steps, not-a-number where nothing was looked at."""
        known = dict(zip(self.steps.tolist(), self.values.tolist(), strict=True))
        return np.array([known.get(step, np.nan) for step in steps.tolist()])


def clock(run: RunDirectory, found: Report | None, course: Course | None = None) -> View:
    """A training on one clock: heads, accuracy, loss and the spectrum.

    `course` is the largest eigenvalue on many rows, where it was measured.
    """
    history = run.history
    eigenvalues = history.get("eigenvalues", np.zeros((0, 0)))
    events = {}

    if found is not None:
        events = named_steps(found, None if course is None else course.rows)

    panels = [
        views.panel("Accuracy", "share", [
            views.line("tokens a pattern foretells", history["pattern_accuracy"], colour="copying"),
            views.line("all tokens", history["accuracy"], colour="null"),
        ]),
        views.panel("Loss", "nats", [
            views.line("tokens a pattern foretells", history["pattern_loss"], colour="copying"),
            views.line("other tokens (control)", history["other_loss"], colour="null"),
        ]),
    ]  # fmt: skip

    if eigenvalues.size:
        panels += [
            _spectrum(run, course),
            views.panel("Gradient in the top subspace", "share", [
                views.line("the gradient", history["alignment_mass"], colour="induction"),
                views.line(
                    "a random direction (control)", history["alignment_null"], colour="null"
                ),
            ]),
        ]  # fmt: skip

    return views.clock(
        f"{run.name}: one training on one clock",
        history["step"],
        panels,
        {
            "previous token": (history["previous_token"], "previous"),
            "prefix matching": (history["prefix_matching"], "induction"),
        },
        says=(
            "Move the slider: head maps, accuracy, loss and spectrum show the same step. One "
            "training, so no interval."
        ),
        events=events,
    )


def _spectrum(run: RunDirectory, course: Course | None) -> View:
    """The tracked eigenvalues, and the largest on more rows: its size depends on how many."""
    history, few = run.history, f"{run.training.probe_sequences} rows"
    eigenvalues = history["eigenvalues"]
    lines = [views.line(f"the largest, {few}", history["top_eigenvalue"], colour="curvature")]

    if course is not None:
        many = f"the largest, {course.rows} rows"
        lines.append(views.line(many, course.at(history["step"]), colour="ink"))

    # Ranks by size jump between looks, as signs do: no curve joins them.
    by_size = f"the {eigenvalues.shape[1]} largest by size, {few}"
    dots = views.line(by_size, eigenvalues, colour="null")
    return views.panel("Spectrum", "eigenvalue", lines, dots=dots)


def named_steps(found: Report, rows: int | None = None) -> dict[str, float]:
    """The steps that have a name, where the study dates them in this training.

    `rows`: of how many the largest eigenvalue is whose peak is named.
    """
    of_rows = "many rows" if rows is None else f"{rows} rows"
    matching, peak = found["metrics"].get("prefix_matching of the best head"), found["peak"]
    steps = {
        "accuracy": found["midpoint"],
        "best head's prefix matching": None if matching is None else matching["step"],
        f"largest eigenvalue's peak, {of_rows}": None if peak is None else peak["step"],
    }
    return {name: step for name, step in steps.items() if step is not None}


def model_card(run: RunDirectory, found: Report | None) -> View:
    """Sizes, training curve, and when it turned."""
    training, history = run.training, run.history
    formed = [] if found is None else [found["sentence"]]

    return views.card(
        run.name,
        {
            "layers": training.n_layers,
            "heads a layer": training.n_heads,
            "width": training.d_model,
            "parameters": f"{run.config['n_parameters']:,}",
            "data": training.data,
        },
        steps=history["step"],
        panels=[
            views.panel("Training", "nats", [
                views.line("training loss", history["loss"], colour="null"),
                views.line("held-out loss", history["held_out_loss"], colour="ink"),
            ]),
        ],
        formed=formed,
    )  # fmt: skip


def of_the_run() -> Part:
    """The study's part of the page of the run: one clock a condition, a card a training."""
    study = prepare(None, None)
    found = load_json(study.file("metrics", "transition", "transition"))["runs"]
    folders = [study.folder / "runs" / name for name in found]

    if not there(folders):
        return Part(WORDS)

    opened = [RunDirectory.open(folder) for folder in folders]
    runs = [run for run in opened if run.diverged is None]
    first = {run.condition: run for run in reversed(runs)}

    clocks = [clock(run, found[run.name], _course(study, run)) for run in reversed(first.values())]
    return Part(WORDS, clocks, [model_card(run, found[run.name]) for run in runs])


def _course(study: Eigen, run: RunDirectory) -> Course | None:
    """The largest eigenvalue on many rows, which some conditions have."""
    file = study.folder / "scores" / "curvature" / "largest" / f"{run.name}.npz"
    if not there([file]):
        return None

    arrays = load_arrays(file)
    rows = study.params.spectrum.largest_sequences
    return Course(rows, arrays["largest_step"], arrays["largest"])


def page_of(run: RunDirectory, study: Eigen) -> None:
    """One self-contained page of a training, into its directory."""
    hold(run.folder)
    path = run.folder / "page.html"
    found = transition_report([run], study.params.transition)["runs"][run.name]

    with adding_to(run.folder, [path]):
        _write(run, found, path)

    say(path)


def _write(run: RunDirectory, found: Report | None, path: Path) -> None:
    last = run.history["pattern_accuracy"][-1]
    ceiling = run.config["bounds"]["ceiling"]

    write_own(
        path,
        [clock(run, found)],
        title=f"The training {run.name}",
        lead=(
            f"After {run.training.num_steps} steps {last:.2f} of what a pattern foretells is right;"
            f" an oracle's {ceiling:.2f}."
        ),
        made={
            "command": f"eigen-phase page {run.folder}",
            "weights (SHA-256)": run.config["weights_sha256"],
            "seed": run.training.seed,
            "data": run.training.data,
        },
    )
