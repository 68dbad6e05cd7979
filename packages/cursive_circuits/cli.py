"""`cursive-circuits`: the commands of this study. Thin: options in, one call."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from interp_core.console.options import Group, option, profile_option, study_option

if TYPE_CHECKING:
    from cursive_circuits.study import Study

_OUT = option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write into."
)
_MODEL = option(
    "--model",
    type=click.Path(path_type=Path),
    help=(
        "A run directory, or a public checkpoint (.pt, .safetensors) that fits the profile, "
        "instead of the study's."
    ),
)
_BANK = option(
    "--bank",
    type=click.Path(path_type=Path),
    help="A bank of handwriting in the public format (.zip, .json), instead of the profile's.",
)


def _prepared(
    profile: str | None, out: Path | None, model: Path | None, bank: Path | None
) -> "Study":
    """The call, with the words of the bank that it names."""
    from cursive_circuits import workflow
    from cursive_circuits.study import prepare_study

    study = prepare_study(profile, out, model, bank)
    if bank is not None:
        workflow.ensure_bank(study)
    return study


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """Induction circuits over pen strokes: a transformer that writes cursive, and a positive
    control.

    Called without options a command is a stage of the pipeline (data/cursive_circuits). With
    --profile, --model or --out it is an experiment in a folder of its own; commands read there what
    earlier ones left.
    """


@main.command()
@profile_option
@_OUT
@_BANK
def prepare(profile: str | None, out: Path | None, bank: Path | None) -> None:
    """Write the default bank of handwriting, or take the words of one of your own."""
    from cursive_circuits import workflow
    from cursive_circuits.study import prepare_study

    workflow.prepare(prepare_study(profile, out, bank=bank))


@main.command()
@profile_option
@_OUT
@_BANK
@option("--only", type=click.Choice(["handwriting", "control"]), help="One of the two models.")
def train(profile: str | None, out: Path | None, bank: Path | None, only: str | None) -> None:
    """Train the model that writes, and beside it the positive control. Resumes."""
    from cursive_circuits import workflow

    workflow.train(_prepared(profile, out, None, bank), only=only)


@main.command()
@profile_option
@_OUT
@_MODEL
@_BANK
@option(
    "--text", help="Write this, into sample.png of the folder, instead of measuring legibility."
)
@option("--temperature", type=float, help="Of the sampled tokens; above 0.")
def sample(
    profile: str | None,
    out: Path | None,
    model: Path | None,
    bank: Path | None,
    text: str | None,
    temperature: float | None,
) -> None:
    """Words that the model writes, and whether they can be read."""
    from cursive_circuits import workflow
    from cursive_circuits.study import at_temperature

    study = _prepared(profile, out, model, bank)
    workflow.sample(at_temperature(study, temperature), text=text)


@main.command()
@profile_option
@_OUT
@_MODEL
@_BANK
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
@option("--text", default="", help="What is read beside --tokens.")
def draw(
    profile: str | None,
    out: Path | None,
    model: Path | None,
    bank: Path | None,
    words: tuple[str, ...],
    tokens: str | None,
    text: str,
) -> None:
    """Attention over the ink of a word written twice.

    With --word or --tokens its pictures and the page to hover over are drawn too. A word that the
    bank does not hold is drawn as the model writes it.
    """
    from cursive_circuits import workflow
    from cursive_circuits.study import ids_of

    study = _prepared(profile, out, model, bank)
    workflow.draw(study, words=words, ids=ids_of(tokens, words), text=text)


def _stage(name: str, text: str) -> Callable[..., None]:
    """A command that takes a profile, a folder and a model, and calls the function of its name."""

    @main.command(name, help=text)
    @profile_option
    @_OUT
    @_MODEL
    @_BANK
    def command(
        profile: str | None, out: Path | None, model: Path | None, bank: Path | None
    ) -> None:
        from cursive_circuits import workflow

        getattr(workflow, name)(_prepared(profile, out, model, bank))

    return command


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
@profile_option
@_OUT
@_BANK
def run(profile: str | None, out: Path | None, bank: Path | None) -> None:
    """Everything, from the bank to the figures."""
    from cursive_circuits import workflow
    from cursive_circuits.study import prepare_study

    study = prepare_study(profile, out, bank=bank)
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
        workflow.figures,
    ):
        stage(study)


@main.command()
@study_option
def answers(out: Path | None) -> None:
    """The study's headline numbers, from its metrics: answers.json."""
    from cursive_circuits.answers import answers as found
    from interp_core.console.answers import write

    write("cursive_circuits", found, out)


if __name__ == "__main__":
    main()
