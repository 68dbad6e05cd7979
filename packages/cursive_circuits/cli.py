"""`cursive-circuits`: the commands of this study. Thin: options in, one call."""

from collections.abc import Callable
from pathlib import Path

import click

from interp_core.console.options import Group, option, profile_option, study_option

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
def prepare(profile: str | None, out: Path | None) -> None:
    """Write the default bank of handwriting, or check the one that the profile names."""
    from cursive_circuits import workflow
    from cursive_circuits.study import prepare_study

    workflow.prepare(prepare_study(profile, out))


@main.command()
@profile_option
@_OUT
@option("--only", type=click.Choice(["handwriting", "control"]), help="One of the two models.")
def train(profile: str | None, out: Path | None, only: str | None) -> None:
    """Train the model that writes, and beside it the positive control. Resumes."""
    from cursive_circuits import workflow
    from cursive_circuits.study import prepare_study

    workflow.train(prepare_study(profile, out), only=only)


@main.command()
@profile_option
@_OUT
@_MODEL
@option(
    "--text", help="Write this, into sample.png of the folder, instead of measuring legibility."
)
@option("--temperature", type=float, help="Of the sampled tokens; above 0.")
def sample(
    profile: str | None,
    out: Path | None,
    model: Path | None,
    text: str | None,
    temperature: float | None,
) -> None:
    """Words that the model writes, and whether they can be read."""
    from cursive_circuits import workflow
    from cursive_circuits.study import at_temperature, prepare_study

    study = prepare_study(profile, out, model)
    workflow.sample(at_temperature(study, temperature), text=text)


@main.command()
@profile_option
@_OUT
@_MODEL
@option("--word", help="A word of the bank, instead of the profile's.")
def draw(profile: str | None, out: Path | None, model: Path | None, word: str | None) -> None:
    """Attention over the ink of a word written twice; with --word also its pictures.

    `page` shows it.
    """
    from cursive_circuits import workflow
    from cursive_circuits.study import prepare_study

    workflow.draw(prepare_study(profile, out, model), word=word)


def _stage(name: str, text: str) -> Callable[..., None]:
    """A command that takes a profile, a folder and a model, and calls the function of its name."""

    @main.command(name, help=text)
    @profile_option
    @_OUT
    @_MODEL
    def command(profile: str | None, out: Path | None, model: Path | None) -> None:
        from cursive_circuits import workflow
        from cursive_circuits.study import prepare_study

        getattr(workflow, name)(prepare_study(profile, out, model))

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
def run(profile: str | None, out: Path | None) -> None:
    """Everything, from the bank to the figures."""
    from cursive_circuits import workflow
    from cursive_circuits.study import prepare_study

    study = prepare_study(profile, out)
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
@profile_option
@_OUT
@_MODEL
@option("--word", help="A word of the bank, instead of the profile's, for a model of yours.")
def page(profile: str | None, out: Path | None, model: Path | None, word: str | None) -> None:
    """Ink, and what every stroke reads, in one self-contained file: page.html."""
    from cursive_circuits import workflow
    from cursive_circuits.page import own_page
    from cursive_circuits.page import page as of_the_run
    from cursive_circuits.study import prepare_study

    study = prepare_study(profile, out, model)

    if out is None and profile is None and model is None and word is None:
        of_the_run(study)
        return

    if word is not None or not (study.folder / "scores" / "draw").is_dir():
        workflow.draw(study, word=word)

    own_page(study)


@main.command()
@study_option
def answers(out: Path | None) -> None:
    """The study's headline numbers, from its metrics: answers.json."""
    from cursive_circuits.answers import answers as found
    from interp_core.console.answers import write

    write("cursive_circuits", found, out)


if __name__ == "__main__":
    main()
