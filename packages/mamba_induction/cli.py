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
    study_option,
    trainings_option,
    with_call,
)

_OPTIONS: tuple[Decorator, ...] = (
    option("--model", metavar="M", help="The Mamba: a name of the profile, a directory, a hub id."),
    option(
        "--twin",
        metavar="M",
        help="A transformer to ask the same; none unless named when --model is given.",
    ),
    out_option,
    profile_option,
    option(
        "--dataset",
        help="Text: a file or folder, an installed package, the profile's hub data set.",
    ),
    option("--texts", type=int, help="Documents to fine-tune on."),
    option("--epochs", type=int, help="Passes over them."),
    option("--batch-size", type=int, help="Documents computed together in fine-tuning."),
    option("--grad-accum", type=int, help="Batches in one update."),
    option("--max-length", type=int, help="Tokens of a document; what is longer is cut."),
    option("--lr", type=float, help="Learning rate of AdamW."),
    option("--clip", type=float, help="Largest norm of the gradient."),
    option("--device", help="cpu, cuda, cuda:N or mps."),
    option("--dtype", help="float32, bfloat16 or float64, of analysed models."),
    option("--threads", type=int, help="CPU threads."),
    option("--seed", type=int, help="Seed of every random choice."),
    option("--n-prompts", type=int, help="Prompts of each family."),
    option("--period", type=int, help="Tokens in one copy of the repeated random tokens."),
    option("--causal-draws", type=int, help="Random controls of each intervention."),
)


def _start(command: str, **given: Any) -> Any:
    """The call of a command; a fine-tuned model is that of the model."""
    from mamba_induction import study

    given.pop("text", None)  # of the page alone, and no other result
    run = study.prepare(given.pop("profile"), given.pop("out"), **given)
    if command not in ("fine_tune", "run_all"):
        study.check_tuned(run)
    return run


_with_call = with_call(_start, _OPTIONS)


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """How does a Mamba copy what it has seen, and what keeps it from predicting what it recognises?

    Called without options a command is a stage of the pipeline (data/mamba_induction). With options
    it is an experiment of yours and writes into --out.
    """


@main.command("fine-tune")
@_with_call
def fine_tune(run: Any) -> None:
    """Fine-tune on text: M-tuned/, fine_tune.csv, fine_tune.json."""
    from mamba_induction import workflow

    workflow.fine_tune(run)


@main.command()
@_with_call
def analyse(run: Any) -> None:
    """Offset profiles, copying, behaviour, hidden similarity, fine-tuning's effect: scores_M.npz,
    analysis_M.json.
    """
    from mamba_induction import workflow

    workflow.analyse(run)
    if not run.is_stage:
        workflow.figures(run)


@main.command()
@_with_call
def gap(run: Any) -> None:
    """Recognised but not predicted: logit lens, rivals, paths: gap_M.json."""
    from mamba_induction import workflow

    workflow.gap(run)
    if not run.is_stage:
        workflow.figures(run)


@main.command()
@_with_call
def causal(run: Any) -> None:
    """Layers, convolution taps, single reads and states changed, with random controls:
    causal_M.json.
    """
    from mamba_induction import workflow

    workflow.causal(run)
    if not run.is_stage:
        workflow.figures(run)


@main.command()
@_with_call
def figures(run: Any) -> None:
    """Every figure of what has run, from its files."""
    from mamba_induction import workflow

    workflow.figures(run)


@main.command()
@_with_call
def summary(run: Any) -> None:
    """analysis_summary.txt: every number, in sections."""
    from mamba_induction import workflow

    workflow.summary(run)


@main.command("run")
@_with_call
def run_all(run: Any) -> None:
    """Everything: fine-tune, analyse, gap, causal, figures, summary."""
    from mamba_induction import workflow

    workflow.run_all(run)


@main.command()
@option("--text", help="Text to show hidden attention on, at most 128 tokens with its repeat.")
@_with_call
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

    build(run, text)


@main.command()
@study_option
@trainings_option
def answers(out: Path | None, trainings: tuple[Path, ...]) -> None:
    """The study's headline numbers, from its metrics: answers.json."""
    from interp_core.console.answers import write
    from mamba_induction.answers import answers as found

    write("mamba_induction", found, out, trainings)


if __name__ == "__main__":
    main()
