"""`mamba-induction`: the commands of the study. Thin: options in, one call."""

from pathlib import Path
from typing import Any

import click

from interp_core.console.options import (
    Decorator,
    Group,
    fail,
    option,
    out_option,
    profile_option,
    say_unread,
    settings,
    study_option,
    trainings_option,
    typed,
)

_MORE: tuple[Decorator, ...] = (
    out_option,
    profile_option,
    option(
        "--dataset",
        help="Text: a file or folder, an installed package, the profile's hub data set.",
    ),
)


def _start(
    command: str,
    *,
    settings: dict[str, Any],
    profile: str | None,
    out: Path | None,
    dataset: str | None,
    text: str | None = None,
) -> Any:
    """The call of a command; a fine-tuned model is that of the model."""
    from mamba_induction import study

    del text  # what a page shows, and no other result
    loads = command not in ("figures", "summary")
    if not loads:
        say_unread(["dataset"])
    run = study.prepare(profile, out, text=dataset, loads=loads, **settings)
    if command not in ("fine_tune", "run_all"):
        study.check_tuned(run)
    return run


_settings = settings(__file__, _start, more=_MORE)


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """How does a Mamba copy what it has seen, and what keeps it from predicting what it recognises?

    Called without options a command is a stage of the pipeline (data/mamba_induction). With options
    it is an experiment of yours and writes into --out.
    """


@main.command("fine-tune")
@_settings()
def fine_tune(run: Any) -> None:
    """Fine-tune on text: M-tuned/, fine_tune.csv, fine_tune.json."""
    from mamba_induction import workflow

    workflow.fine_tune(run)


@main.command()
@_settings()
def analyse(run: Any) -> None:
    """Offset profiles, copying, behaviour, hidden similarity, fine-tuning's effect: scores_M.npz,
    analysis_M.json.
    """
    from mamba_induction import workflow

    workflow.analyse(run)
    if not run.is_stage:
        workflow.figures(run)


@main.command()
@_settings()
def gap(run: Any) -> None:
    """Recognised but not predicted: logit lens, rivals, paths: gap_M.json."""
    from mamba_induction import workflow

    workflow.gap(run)
    if not run.is_stage:
        workflow.figures(run)


@main.command()
@_settings()
def causal(run: Any) -> None:
    """Layers, convolution taps, single reads and states changed, with random controls:
    causal_M.json.
    """
    from mamba_induction import workflow

    workflow.causal(run)
    if not run.is_stage:
        workflow.figures(run)


@main.command()
@_settings()
def figures(run: Any) -> None:
    """Every figure of what has run, from its files."""
    from mamba_induction import workflow

    workflow.figures(run)


@main.command()
@_settings()
def summary(run: Any) -> None:
    """analysis_summary.txt: every number, in sections."""
    from mamba_induction import workflow

    workflow.summary(run)


@main.command("run")
@_settings()
def run_all(run: Any) -> None:
    """Everything: fine-tune, analyse, gap, causal, figures, summary."""
    from mamba_induction import workflow

    workflow.run_all(run)


@main.command()
@option("--text", help="Text to show hidden attention on, at most 128 tokens with its repeat.")
@_settings()
def page(run: Any, *, text: str | None) -> None:
    """A Mamba of yours to look at, in one self-contained file: page_M.html.

    It shows the folder's own records of this Mamba; those that are missing are made first.
    """
    if run.is_stage:
        fail("name a Mamba of yours (--model M); `make report` has the page of the run")

    from interp_core.models.spec import short_name
    from mamba_induction import workflow
    from mamba_induction.page import page as build

    model, name = run.params.model, short_name(run.params.model)
    records = ((workflow.analyse, "analyse", "analysis"), (workflow.causal, "causal", "causal"))

    for measure, command, stem in records:
        if not run.is_of(command, f"{stem}_{name}", run.sources([model])):
            measure(run)

    build(run, text, command=typed("mamba-induction"))


@main.command()
@study_option
@trainings_option
def answers(out: Path | None, trainings: tuple[Path, ...]) -> None:
    """The study's numbers, headlines marked, from its metrics: answers.json."""
    from interp_core.console.answers import write
    from mamba_induction.answers import answers as found

    write("mamba_induction", found, out, trainings)


if __name__ == "__main__":
    main()
