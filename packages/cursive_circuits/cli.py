"""`cursive-circuits`: the commands of this study. Thin: options in, one call."""

from pathlib import Path
from typing import Any

import click

from interp_core.console.options import (
    Group,
    fail,
    option,
    out_option,
    profile_option,
    study_option,
    trainings_option,
    with_call,
)

_MODEL = option(
    "--model",
    type=click.Path(path_type=Path),
    help="A run directory, or a public checkpoint (.pt, .safetensors) that fits the profile, "
    "instead of the study's.",
)
_BANK = option(
    "--bank",
    type=click.Path(path_type=Path),
    help="A bank of handwriting in the public format (.zip, .json), instead of the profile's.",
)


def _start(command: str, *, profile: str | None, out: Path | None, **given: Any) -> Any:
    """The call of a command, its folder looked at, with the words of the bank that it names."""
    from cursive_circuits import study, workflow

    given.pop("only", None)  # a part of a stage, and no other result
    run = study.prepare(profile, out, **given)
    run.check_folder()

    # These two take the words themselves.
    if given["bank"] is not None and command not in ("prepare", "run"):
        workflow.ensure_bank(run)
    return run


_of_a_study = with_call(_start, (profile_option, out_option, _BANK))
_of_a_model = with_call(_start, (profile_option, out_option, _MODEL, _BANK))


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """Induction circuits over pen strokes: a transformer that writes cursive, and a positive
    control.

    Called without options a command is a stage of the pipeline (data/cursive_circuits). With
    --profile, --model, --bank or --out it is an experiment in a folder of its own; commands read
    there what earlier ones left.
    """


@main.command()
@_of_a_study
def prepare(run: Any) -> None:
    """Write the default bank of handwriting, or take the words of one of your own."""
    from cursive_circuits import workflow

    workflow.prepare(run)


@main.command()
@option("--only", type=click.Choice(["handwriting", "control"]), help="One of the two models.")
@_of_a_study
def train(run: Any, only: str | None) -> None:
    """Train the model that writes, and beside it the positive control. Resumes."""
    from cursive_circuits import workflow

    workflow.train(run, only=only)


@main.command()
@option(
    "--text", help="Write this, into sample.png of the folder, instead of measuring legibility."
)
@option("--temperature", type=float, help="Of the sampled tokens; above 0.")
@_of_a_model
def sample(run: Any, text: str | None) -> None:
    """Words that the model writes, and whether they can be read."""
    from cursive_circuits import workflow

    workflow.sample(run, text=text)


@main.command()
@option(
    "--word",
    "words",
    multiple=True,
    help=(
        "A word, instead of the profile's: alone it is written twice; named several times, a row "
        "of words."
    ),
)
@option("--tokens", help="A row of token ids, with commas between, instead of words.")
@option("--text", help="What is read beside --tokens.")
@_of_a_model
def draw(run: Any, words: tuple[str, ...], tokens: str | None, text: str | None) -> None:
    """Attention over the ink of a word written twice.

    With --word or --tokens its pictures and the page to hover over are drawn too. A word that the
    bank does not hold is drawn as the model writes it.
    """
    from cursive_circuits import workflow
    from cursive_circuits.study import ids_of

    ids = ids_of(tokens, words, text)
    workflow.draw(run, words=words, ids=ids, text=text or "")


def _stage(name: str, text: str) -> None:
    """A command that takes a profile, a folder and a model, and calls the function of its name."""

    def command(run: Any) -> None:
        from cursive_circuits import workflow

        if name in _READS_HEADS and not run.is_stage:
            workflow.ensure(run, writes=name == "ablate")
        getattr(workflow, name)(run)

    main.command(name, help=text)(_of_a_model(command))


_READS_HEADS = ("composition", "ablate")
_stage("attention", "Where cross-attention reads, against the letter that is written.")
_stage(
    "heads",
    "Pair-level scores of every head on every family of repeats, and what a repeat is worth.",
)
_stage("circuits", "QK and OV circuits on directions, radii and characters.")
_stage("composition", "Q-, K- and V-composition against random matrices, and path patching.")
_stage(
    "ablate", "Ablations against matched random heads, the verdict, and the ink before and after."
)
_stage("figures", "All figures, from files alone.")


@main.command()
@_of_a_study
def run(run: Any) -> None:
    """Everything, from the bank to the figures."""
    from cursive_circuits import workflow

    for stage in (
        workflow.prepare,
        workflow.train,
        workflow.sample,
        workflow.attention,
        workflow.heads,
        workflow.circuits,
        workflow.composition,
        workflow.ablate,
        workflow.draw,
    ):
        stage(run)
        workflow.figures(run, only=stage.__name__)


@main.command()
@option("--word", help="A word, written twice, instead of the profile's.")
@_of_a_model
def page(run: Any, word: str | None) -> None:
    """Ink of yours, and what every stroke reads, in one self-contained file: page.html."""
    if run.is_stage:
        fail("name a word or a model of yours; `make report` has the page of the run")

    from cursive_circuits import workflow
    from cursive_circuits.page import own_page

    workflow.draw(run, words=[] if word is None else [word])
    own_page(run)


@main.command()
@study_option
@trainings_option
def answers(out: Path | None, trainings: tuple[Path, ...]) -> None:
    """The study's headline numbers, from its metrics: answers.json."""
    from cursive_circuits.answers import answers as found
    from interp_core.console.answers import write

    write("cursive_circuits", found, out, trainings)


if __name__ == "__main__":
    main()
