"""`mamba-induction`: the commands of the study. Thin: options in, one call."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from interp_core.console.options import Decorator, Group, option, profile_option, study_option
from interp_core.errors import InputError

_OPTIONS: tuple[Decorator, ...] = (
    option("--model", metavar="M", help="The Mamba: a name of the profile, a directory, a hub id."),
    option(
        "--twin",
        metavar="M",
        help="A transformer to ask the same; none unless named when --model is given.",
    ),
    option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for everything that is written.",
    ),
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


def _with_run(command: Callable[..., None]) -> Callable[..., None]:
    """A command that gets a prepared Run instead of its options."""

    @wraps(command)
    def call(**options: Any) -> None:
        from mamba_induction.study import check_request, prepare

        own = {name: options.pop(name) for name in ("text",) if name in options}
        run = prepare(options.pop("profile"), options.pop("out"), **options)
        check_request(run)
        command(run, **own)

    with_options: Callable[..., None] = call
    for add in reversed(_OPTIONS):
        with_options = add(with_options)
    return with_options


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """How does a Mamba copy what it has seen, and what keeps it from predicting what it recognises?

    Called without options a command is a stage of the pipeline (data/mamba_induction). With options
    it is an experiment of yours and writes into --out (default outputs/mamba_induction).
    """


@main.command("fine-tune")
@_with_run
def fine_tune(run: Any) -> None:
    """Fine-tune on text: M-tuned/, fine_tune.csv, fine_tune.json."""
    from mamba_induction import workflow

    workflow.fine_tune(run)


@main.command()
@_with_run
def analyse(run: Any) -> None:
    """Offset profiles, copying, behaviour, hidden similarity, fine-tuning's effect: scores_M.npz,
    analysis_M.json.
    """
    from mamba_induction import workflow

    workflow.analyse(run)
    if run.out:
        workflow.figures(run)


@main.command()
@_with_run
def gap(run: Any) -> None:
    """Recognised but not predicted: logit lens, rivals, paths: gap_M.json."""
    from mamba_induction import workflow

    workflow.gap(run)


@main.command()
@_with_run
def causal(run: Any) -> None:
    """Layers, convolution taps, single reads and states changed, with random controls:
    causal_M.json.
    """
    from mamba_induction import workflow

    workflow.causal(run)


@main.command()
@_with_run
def figures(run: Any) -> None:
    """Every figure of what has run, from its files."""
    from mamba_induction import workflow

    workflow.figures(run)


@main.command()
@_with_run
def summary(run: Any) -> None:
    """analysis_summary.txt: every number, in sections."""
    from mamba_induction import workflow

    workflow.summary(run)


@main.command()
@option("--text", help="Text to show hidden attention on, at most 128 tokens with its repeat.")
@_with_run
def page(run: Any, *, text: str | None) -> None:
    """The Mamba to look at, in one self-contained file: page_M.html."""
    from mamba_induction import workflow
    from mamba_induction.page import page as build

    if run.out is not None:
        if not (run.out / f"analysis_{run.names[0]}.json").is_file():
            workflow.analyse(run)
        if not (run.out / f"causal_{run.names[0]}.json").is_file():
            workflow.causal(run)
    elif text is not None:
        raise InputError(
            "--text is for a model of yours: name it with --model, and a folder with --out"
        )

    build(run, text)


@main.command("run")
@_with_run
def run_all(run: Any) -> None:
    """Everything: fine-tune, analyse, gap, causal, figures, summary."""
    from mamba_induction import workflow

    workflow.run_all(run)


@main.command()
@study_option
def answers(out: Path | None) -> None:
    """The study's headline numbers, from its metrics: answers.json."""
    from interp_core.console.answers import write
    from mamba_induction.answers import answers as found

    write("mamba_induction", found, out)


if __name__ == "__main__":
    main()
