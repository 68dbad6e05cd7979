"""One W&B dashboard for all studies: a workspace view a study, and a report with a section a study.

Runs are grouped by profile and seed everywhere, over the one axis that trainings declare. What is
shown is written down here; what a curve is called and is, in `training/curves.py`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp_core.errors import InputError, first_line
from interp_core.training import account
from interp_core.training.curves import AXIS, SECTIONS, Curve, curve_of

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import (
        Layout,
        LinePlot,
        PanelGrid,
        Report,
        Runset,
    )
    from wandb_workspaces.workspaces import Workspace

_TRAINED = ("loss", "batch_loss", "learning_rate", "tokens_per_second")
_GROUPS = ("profile", "seed")
_MOST_RUNS = 100  # that a panel draws


@dataclass(frozen=True)
class Shown:
    """One study, or the stage that trains for several, on the dashboard."""

    study: str
    question: str
    columns: tuple[str, ...] = ()  # of its histories; none where it trains nothing
    tables: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    answers: bool = True  # whether its evaluations are runs

    @property
    def curves(self) -> list[Curve]:
        """Its curves, by section."""
        found = [curve_of(column) for column in self.columns]
        return sorted(found, key=lambda curve: SECTIONS.index(curve.name.partition("/")[0]))


SHOWN = (
    Shown(
        "reference_models",
        "When do induction heads form in the models that three studies ask about?",
        (
            *_TRAINED,
            *("validation_loss", "repeat_accuracy", "repeated_text_accuracy"),
            "best_prefix_matching",
        ),
        tables=("heads/scores",),
        answers=False,
    ),
    Shown(
        "mamba_models",
        "When do a Mamba and its transformer twin learn to copy?",
        (
            *_TRAINED,
            *("validation_loss", "pairs_accuracy", "repeated_text_accuracy"),
            *(f"accuracy_period_{period}" for period in (8, 12, 16, 20)),
        ),
        answers=False,
    ),
    Shown(
        "pythia_topology",
        "Do induction heads sit at a stable relative depth across model sizes?",
    ),
    Shown(
        "mamba_induction",
        "Where and how does a Mamba do induction, and why is detecting not predicting?",
        (
            *_TRAINED,
            *("held_out_loss", "held_out_perplexity", "prefix_matching"),
            *("repeat_accuracy", "pairs_accuracy", "repeated_text_accuracy"),
            "unpredicted_accuracy",
        ),
    ),
    Shown(
        "mamba_neurons",
        "Which neurons of a Mamba are delta-sensitive, causal, attention-like?",
    ),
    Shown(
        "eigen_phase",
        "What does the Hessian's spectrum do while induction heads form?",
        (
            *_TRAINED,
            *("held_out_loss", "other_loss", "accuracy", "pattern_loss", "pattern_accuracy"),
            *("own_accuracy", *(f"copy_accuracy/{copy}" for copy in (2, 3, 4))),
            *("top_eigenvalue", "most_negative_eigenvalue", "spectral_norm", "gradient_norm"),
            *("alignment_mass", "alignment_independent", "alignment_training"),
            *("alignment_update", "alignment_null", "persistence", "products"),
            *("worst_residual", "most_negative_residual"),
        ),
        tables=("heads/scores", "heads/pairs", "curvature/eigenpairs"),
    ),
    Shown(
        "cursive_circuits",
        "Does a transformer that writes cursive use induction circuits?",
        (
            *_TRAINED,
            *("held_out_loss", "held_out_accuracy", "held_out_direction"),
            *("held_out_radius", "held_out_pen"),
        ),
        pictures=("ink/sample",),
    ),
)


def make(entity: str, project: str) -> list[str]:
    """Make the views and the report; what was made, a line each.

    Without an account, what would be made. InputError where the server cannot be used.
    """
    # Before wandb is imported: its own lines say the same as ours.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    call = account.begin()
    if call.trouble is not None:
        raise InputError(f"{call.server} cannot be used: {call.trouble}")

    views = [view(shown, entity, project) for shown in SHOWN if shown.columns]
    told = report(entity, project)

    if call.mode not in ("online", "shared"):
        return [
            *(_would(f"a view {one.name!r}, panels", _sections_of(one)) for one in views),
            _would(f"a report {told.title!r}", [shown.study for shown in SHOWN]),
            f"runs grouped by {' and '.join(_GROUPS)}, over the axis `{AXIS}`",
            "no account: nothing was sent; `wandb login`, then the same command",
        ]

    try:
        told.save()
    except ValueError as problem:
        mend = f"send a run there first (WANDB_ENTITY={entity} WANDB_PROJECT={project})"
        raise InputError(f"{first_line(problem).split('. ')[0]}: {mend}") from None

    made = [f"view {one.name}: {one.save().url}" for one in views]
    return [*made, f"report {told.title}: {told.url}"]


def view(shown: Shown, entity: str, project: str) -> "Workspace":
    """The trainings of a study: a section of panels for each section of its curves."""
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2 import MediaBrowser

    by_section: dict[str, list] = {section: [] for section in SECTIONS}
    for curve in shown.curves:
        by_section[curve.name.partition("/")[0]].append(panel(curve))
    for name in shown.tables:
        by_section[name.partition("/")[0]].append(_table(name))
    for name in shown.pictures:
        by_section[name.partition("/")[0]].append(MediaBrowser(media_keys=[name]))

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"Induction Lab, {shown.study.replace('_', ' ')}",
        sections=[
            workspaces.Section(name=section, panels=panels, is_open=True)
            for section, panels in by_section.items()
            if panels
        ],
        settings=workspaces.WorkspaceSettings(x_axis=AXIS, max_runs=_MOST_RUNS),
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Config("study") == shown.study],
            groupby=[workspaces.Config(name) for name in _GROUPS],
        ),
    )


def report(entity: str, project: str) -> "Report":
    """Questions, curves and answers: a section a study."""
    from wandb_workspaces.reports.v2.interface import (
        H1,
        P,
        PanelGrid,
        Report,
        RunComparer,
        TableOfContents,
    )

    blocks: list = [TableOfContents()]

    for shown in SHOWN:
        blocks += [H1(text=shown.study.replace("_", " ")), P(text=shown.question)]
        if shown.columns:
            trained = _runs(shown.study, entity, project, "trainings", evaluations=False)
            blocks.append(_grid(trained, [panel(curve) for curve in shown.curves]))
        if shown.answers:
            answered = _runs(shown.study, entity, project, "evaluations", evaluations=True)
            comparer = RunComparer(diff_only="split", layout=_place(0, wide=True))
            blocks.append(PanelGrid(runsets=[answered], panels=[comparer]))

    return Report(
        entity=entity,
        project=project,
        title="Induction Lab",
        description="Live curves of every training, and the answers of every evaluation.",
        blocks=blocks,
        width="fluid",
    )


def panel(curve: Curve) -> "LinePlot":
    """One curve of all runs: mean and range over the runs of a group."""
    from wandb_workspaces.reports.v2 import LinePlot

    is_loss = curve.best == "min" and "loss" in curve.name
    return LinePlot(
        title=f"{curve.name}: {curve.says}",
        x=AXIS,
        y=[curve.name],
        title_x="updates",
        title_y=re.split(r", (?=[^,]*$)", curve.says)[-1],
        log_y=True if is_loss else None,
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def _table(name: str) -> object:
    from wandb_workspaces.reports.v2 import WeavePanelSummaryTable

    return WeavePanelSummaryTable(table_name=name)


def _runs(study: str, entity: str, project: str, name: str, *, evaluations: bool) -> "Runset":
    from wandb_workspaces.expr import Config, Metric
    from wandb_workspaces.reports.v2.interface import Runset

    job = Metric("JobType")
    return Runset(
        entity=entity,
        project=project,
        name=name,
        filters=[
            Config("study") == study,
            job == "evaluate" if evaluations else job != "evaluate",
        ],
        groupby=[f"config.{key}" for key in _GROUPS],
    )


def _grid(runs: "Runset", panels: "Sequence[LinePlot]") -> "PanelGrid":
    from wandb_workspaces.reports.v2 import PanelGrid

    for number, one in enumerate(panels):
        one.layout = _place(number)
    return PanelGrid(runsets=[runs], panels=list(panels))


def _place(number: int, *, wide: bool = False) -> "Layout":
    """Three panels a row of a report's 24 columns."""
    from wandb_workspaces.reports.v2.interface import Layout

    if wide:
        return Layout(x=0, y=0, w=24, h=9)
    return Layout(x=8 * (number % 3), y=6 * (number // 3), w=8, h=6)


def _sections_of(made: "Workspace") -> list[str]:
    return [f"{section.name} {len(section.panels)}" for section in made.sections]


def _would(what: str, sections: Sequence[str]) -> str:
    return f"would make {what}: {', '.join(sections)}"
