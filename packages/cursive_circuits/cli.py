"""`cursive-circuits`: the commands of this study. Thin: options in, one call."""

from pathlib import Path
from typing import Any

import click

from interp_core.console.options import (
    Group,
    cluster_option,
    fail,
    option,
    out_option,
    profile_option,
    settings,
    study_option,
    trainings_option,
    typed,
)
from interp_core.errors import InputError

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


def _start(
    command: str,
    *,
    settings: dict[str, Any],
    profile: str | None,
    out: Path | None,
    bank: Path | None,
    model: Path | None = None,
    sampling: dict[str, Any] | None = None,
    only: str | None = None,
    **asked: Any,
) -> Any:
    """The call of a command, its folder looked at, with the words of the bank that it names."""
    # Here, for the study's rooms load PyTorch.
    if model is not None:
        _check_model(model)

    from cursive_circuits import study, workflow

    del only  # a part of a stage, and no other result
    asks = any(value not in (None, ()) for value in asked.values())
    run = study.prepare(
        profile, out, model=model, bank_file=bank, sampled=sampling, asks=asks, **settings
    )
    run.check_folder()

    # These two take the words themselves.
    if bank is not None and command not in ("prepare", "run"):
        workflow.ensure_bank(run)
    return run


def _check_model(path: Path) -> None:
    """InputError for a model that is not there, before a bank is taken."""
    if not path.exists():
        raise InputError(f"no checkpoint {path}: name a run directory, or a .pt or .safetensors")
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"{path} is not a run directory: it has no config.json; `cursive-circuits train` "
            "writes one"
        )


_settings = settings(__file__, _start, more=(profile_option, out_option, _BANK))


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
@_settings()
def prepare(run: Any) -> None:
    """Write the default bank of handwriting, or take the words of one of your own."""
    from cursive_circuits import workflow

    workflow.prepare(run)


@main.command()
@cluster_option
@option("--only", type=click.Choice(["handwriting", "control"]), help="One of the two models.")
@_settings()
def train(run: Any, only: str | None) -> None:
    """Train the model that writes, and beside it the positive control. Resumes."""
    from cursive_circuits import workflow

    workflow.train(run, only=only)


@main.command()
@option(
    "--text", help="Write this, into sample.png of the folder, instead of measuring legibility."
)
@_MODEL
@_settings("", "sampling")
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
@_MODEL
@_settings()
def draw(run: Any, words: tuple[str, ...], tokens: str | None, text: str | None) -> None:
    """Attention over the ink of a word written twice.

    With --word or --tokens its pictures and the page to hover over are drawn too. A word that the
    bank does not hold is drawn as the model writes it.
    """
    from cursive_circuits import workflow
    from cursive_circuits.study import ids_of

    ids = ids_of(tokens, words, text)
    workflow.draw(run, words=words, ids=ids, text=text or "")


@main.command()
@_MODEL
@_settings()
def attention(run: Any) -> None:
    """Where cross-attention reads, against the letter that is written."""
    from cursive_circuits import workflow

    workflow.attention(run)


@main.command()
@_MODEL
@_settings()
def heads(run: Any) -> None:
    """Pair-level scores of every head on every family of repeats, and what a repeat is worth."""
    from cursive_circuits import workflow

    workflow.heads(run)


@main.command()
@_MODEL
@_settings()
def circuits(run: Any) -> None:
    """QK and OV circuits on directions, radii and characters."""
    from cursive_circuits import workflow

    workflow.circuits(run)


@main.command()
@_MODEL
@_settings()
def composition(run: Any) -> None:
    """Q-, K- and V-composition against random matrices, and path patching."""
    from cursive_circuits import workflow

    workflow.ensure(run, writes=False)
    workflow.composition(run)


@main.command()
@_MODEL
@_settings()
def ablate(run: Any) -> None:
    """Ablations against matched random heads, the verdict, and the ink before and after."""
    from cursive_circuits import workflow

    workflow.ensure(run, writes=True)
    workflow.ablate(run)


@main.command()
@_MODEL
@_settings()
def figures(run: Any) -> None:
    """All figures, from files alone."""
    from cursive_circuits import workflow

    workflow.figures(run)


@main.command()
@cluster_option
@_settings()
def run(run: Any) -> None:
    """Everything, from the bank to the figures."""
    from cursive_circuits import workflow

    # Before the bank is another one's.
    workflow.check_trainings(run)

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
@_MODEL
@_settings()
def page(run: Any, word: str | None) -> None:
    """Ink of yours, and what every stroke reads, in one self-contained file: page.html."""
    if run.is_stage:
        fail("name a word or a model of yours; `make report` has the page of the run")

    from cursive_circuits import workflow
    from cursive_circuits.page import own_page

    workflow.draw(run, words=[] if word is None else [word])
    own_page(run, command=typed("cursive-circuits"))


@main.command()
@study_option
@trainings_option
def answers(out: Path | None, trainings: tuple[Path, ...]) -> None:
    """The study's numbers, headlines marked, from its metrics: answers.json."""
    from cursive_circuits.answers import answers as found
    from interp_core.console.answers import write

    write("cursive_circuits", found, out, trainings)


if __name__ == "__main__":
    main()
