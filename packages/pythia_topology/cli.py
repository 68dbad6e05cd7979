"""`induct`: the commands of pythia_topology. Thin: options in, one call."""

from pathlib import Path
from typing import Any

import click

from interp_core.console.options import (
    Decorator,
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

_MORE: tuple[Decorator, ...] = (
    option("--model", metavar="M", help="One model more."),
    out_option,
    profile_option,
    option(
        "--memory-saver", is_flag=True, help="Accepted: one layer at a time is what always happens."
    ),
    option("--print-prompts", is_flag=True, help="Print two prompts of each family and stop."),
)


def _start(
    command: str,
    *,
    settings: dict[str, Any],
    profile: str | None,
    out: Path | None,
    model: str | None,
    memory_saver: bool,
    print_prompts: bool,
    text: str | None = None,
) -> Any:
    """The call of a command, what it is asked checked."""
    from pythia_topology import study, workflow

    # one layer at a time is what always happens; a page's text is no other result
    del memory_saver, text
    if model is not None:
        settings["models"] = (*settings.get("models", ()), model)
    run = study.prepare(profile, out, draws=command == "all_figures", **settings)

    if print_prompts:
        workflow.print_prompts(run)
        raise click.exceptions.Exit

    workflow.check_request(run, command)
    return run


_settings = settings(__file__, _start, more=_MORE, spellings={"causal_top_k": "--topk"})


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """Do induction heads sit at a stable relative depth across model sizes?

    Called without options a command is a stage of the pipeline (data/pythia_topology). With options
    it is an experiment of yours and writes into --out.
    """


@main.command()
@_settings()
def profile(run: Any) -> None:
    """Scores of all heads and the layer profile: scores_M.npz, profile_M.json and figures."""
    from pythia_topology import workflow

    for name, (arrays, report) in workflow.profile(run).items():
        if not run.is_stage:
            from pythia_topology import figures

            figures.draw_profile(arrays, report, name, run.folder)


@main.command()
@_settings()
def crosssize(run: Any) -> None:
    """Two sizes on relative depth: cross_size.json, cross_size_overlay.png."""
    from pythia_topology import workflow

    workflow.ensure_scores(run)
    report = workflow.crosssize(run)
    if not run.is_stage:
        from pythia_topology import figures

        figures.draw_crosssize(report, run.folder / "cross_size_overlay.png")


@main.command()
@_settings()
def multisize(run: Any) -> None:
    """Any number of sizes, all pairs: multi_size.json, multi_size_overlay.png."""
    from pythia_topology import workflow

    workflow.ensure_scores(run)
    report = workflow.multisize(run)
    if not run.is_stage:
        from pythia_topology import figures

        figures.draw_crosssize(report, run.folder / "multi_size_overlay.png")


@main.command()
@_settings()
def nulls(run: Any) -> None:
    """Permuted heads, shuffled antecedents, untrained model: nulls_M.json, nulls_M.png."""
    from pythia_topology import workflow

    workflow.ensure_scores(run)
    for name, (arrays, report) in workflow.nulls(run).items():
        if not run.is_stage:
            from pythia_topology import figures

            figures.draw_nulls(report, arrays, name, run.folder)


@main.command()
@_settings()
def lagbuckets(run: Any) -> None:
    """Short against long lags: lags_M.json, lag_profiles.png."""
    from pythia_topology import workflow

    workflow.ensure_scores(run)
    reports = workflow.lagbuckets(run)
    if not run.is_stage:
        from pythia_topology import figures

        figures.draw_lags(reports, run.folder)


@main.command()
@cluster_option
@_settings()
def causal(run: Any) -> None:
    """Ablate the best heads beside random ones: causal_M.json, causal_delta.png, dose.png."""
    from pythia_topology import workflow

    workflow.ensure_scores(run)
    found = workflow.causal(run)
    if not run.is_stage:
        from pythia_topology import figures

        figures.draw_causal({name: report for name, (_, report) in found.items()}, run.folder)


@main.command()
@_settings()
def composition(run: Any) -> None:
    """K-composition z-scores and path patching: composition_M.json, composition_M.png."""
    from pythia_topology import workflow

    workflow.check_composed(run)
    workflow.ensure_scores(run)
    for name, (arrays, report, scores) in workflow.composition(run).items():
        if not run.is_stage:
            from pythia_topology import figures

            figures.draw_composition(report, arrays, scores, name, run.folder)


@main.command()
@cluster_option
@_settings()
def emergence(run: Any) -> None:
    """The same scores over training checkpoints: emergence_M.json, emergence.png."""
    from pythia_topology import workflow

    found = workflow.emergence(run)
    if not run.is_stage:
        from pythia_topology import figures

        figures.draw_emergence(
            {name: (report, arrays) for name, (arrays, report) in found.items()}, run.folder
        )


@main.command("figures")
@_settings()
def all_figures(run: Any) -> None:
    """All figures from files alone: the pipeline's, or with --out those of its models."""
    from pythia_topology import workflow

    workflow.figures(run)


@main.command()
@cluster_option
def pretrained() -> None:
    """The stage of the profile's pretrained models; of one of yours, `profile`, `causal` ..."""
    from pythia_topology.pretrained import pretrained as measure

    measure()


@main.command("figures-pretrained")
def figures_pretrained() -> None:
    """The stage that draws what `pretrained` measured, from files alone."""
    from pythia_topology.figures_pretrained import figures_pretrained as draw

    draw()


@main.command()
@option(
    "--text", help="Text to show attention and predictions on, at most 128 tokens with its repeat."
)
@_settings()
def page(run: Any, *, text: str | None) -> None:
    """A model of yours to look at, in one self-contained file: page_M.html."""
    if run.is_stage:
        fail("name a model of yours (--model M); `make report` has the page of the run")

    from pythia_topology import workflow
    from pythia_topology.page import page as build

    workflow.ensure_scores(run)
    build(run, text, command=typed("induct"))


@main.command()
@option(
    "--model",
    required=True,
    metavar="M",
    help="A name of the profile, a directory, a hub id; a Mamba too.",
)
@option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Of 127.0.0.1; a free one unless given.",
)
@option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the random heads taken away as control.",
)
@option("--device", help="cpu, cuda, cuda:N, mps, or auto: divided over all.")
@option("--dtype", help="float32, bfloat16 or float64.")
@option("--bos", help="What texts begin with: own, none, a token, or its id.")
@profile_option
def explore(
    *,
    model: str,
    port: int,
    seed: int,
    device: str | None,
    dtype: str | None,
    bos: str | None,
    profile: str | None,
) -> None:
    """A model live in your browser: type a text, take heads away, see what is predicted then."""
    from interp_core.models.spec import short_name, spec_of
    from pythia_topology.study import prepare

    run = prepare(profile, None, models=(model,), device=device, dtype=dtype, bos=bos)

    # Once the model's folder was looked at: these load PyTorch.
    from interp_core.loading import load_model
    from interp_core.page.explore import serve

    subject = load_model(
        spec_of(model, run.known),
        name=short_name(model),
        device=run.params.device,
        dtype=run.params.dtype,
        bos=run.params.bos,
    )
    serve(subject, port=port, seed=seed)


@main.command()
@study_option
@trainings_option
def answers(out: Path | None, trainings: tuple[Path, ...]) -> None:
    """The study's numbers, headlines marked, from its metrics: answers.json.

    Over several trainings also what they say of sizes: sizes.json, sizes.png.
    """
    from interp_core.console.answers import write
    from pythia_topology.answers import answers as found

    write("pythia_topology", found, out, trainings)
    if trainings and out is not None:
        from pythia_topology import workflow

        workflow.sizes(trainings, out)
