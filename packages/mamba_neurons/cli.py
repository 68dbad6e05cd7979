"""`mamba-neurons`: the commands of the study. Thin: options in, one call."""

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
    say_unread,
    settings,
    study_option,
    trainings_option,
    typed,
)

_FOLDER = click.Path(path_type=Path, file_okay=False)
_MORE: tuple[Decorator, ...] = (
    out_option,
    option("--plots-dir", "plots", type=_FOLDER, help="Folder for figures (default: OUT/plots)."),
    profile_option,
)

_PROGRAM = {"whole": "run", "all_figures": "figures"}


def _start(
    command: str,
    *,
    settings: dict[str, Any],
    profile: str | None,
    out: Path | None,
    plots: Path | None,
    save_results: bool = False,
) -> Any:
    """The call of a command."""
    from mamba_neurons import study

    del save_results  # where a report is written, and no other result
    if command == "page":
        say_unread(["plots"])
    program = _PROGRAM.get(command, command)
    return study.prepare(profile, out, command=program, plots=plots, **settings)


_settings = settings(__file__, _start, more=_MORE)


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """Which neurons of a Mamba matter, to what, and how few of them are enough?

    Called without options a command is a stage of the pipeline (data/mamba_neurons). With options
    it is an experiment of yours and writes into --out.
    """


@main.command("run")
@option("--save-results", is_flag=True, help="Write all reports into one file, results_M.json.")
@_settings()
def whole(run: Any, *, save_results: bool) -> None:
    """The whole analysis: delta, causal, inter-layer, cross-layer, attention (--enable-attention),
    sparsity, efficiency, compare, and their figures.
    """
    from mamba_neurons import workflow

    workflow.whole_run(run, save_results=save_results)


@main.command()
@_settings()
def delta(run: Any) -> None:
    """Delta-sensitive neurons: between- and within-text variance of dt, half-lives, selectivity:
    delta_M.json.
    """
    from mamba_neurons import workflow

    workflow.delta(run)
    workflow.draw(run, "delta")


@main.command()
@cluster_option
@_settings()
def causal(run: Any) -> None:
    """Causal neurons: a layer exactly, the model by calibrated estimates: causal_M.json."""
    from mamba_neurons import workflow

    workflow.causal(run)
    workflow.draw(run, "causal")


@main.command("inter-layer")
@_settings()
def inter_layer(run: Any) -> None:
    """KL of the same residual dimension by layer: inter_layer_M.json."""
    from mamba_neurons import workflow

    workflow.inter_layer(run)
    workflow.draw(run, "inter_layer")


@main.command("cross-layer")
@_settings()
def cross_layer(run: Any) -> None:
    """What the best channels do to later ones, against random channels: cross_layer_M.json."""
    from mamba_neurons import workflow

    workflow.cross_layer(run)
    workflow.draw(run, "cross_layer")


@main.command()
@_settings()
def attention(run: Any) -> None:
    """Attention neurons by three methods, with deletion and insertion curves: attention_M.json."""
    from mamba_neurons import workflow

    workflow.attention(run)
    workflow.draw(run, "attention")


@main.command()
@_settings()
def sparsity(run: Any) -> None:
    """Population and lifetime sparsity, the seed's measures with their thresholds, kinds of neuron:
    sparsity_M.json.
    """
    from mamba_neurons import workflow

    workflow.sparsity(run)
    workflow.draw(run, "sparsity")


@main.command()
@_settings()
def efficiency(run: Any) -> None:
    """Active neurons, and how few keep the loss: efficiency_M.json."""
    from mamba_neurons import workflow

    workflow.efficiency(run)
    workflow.draw(run, "efficiency")


@main.command()
@_settings()
def compare(run: Any) -> None:
    """The Mamba beside the transformer on the same tokens: compare_M_T.json."""
    from mamba_neurons import workflow

    workflow.compare(run)
    workflow.draw(run, "compare")


@main.command("figures")
@_settings()
def all_figures(run: Any) -> None:
    """All figures from files alone: the pipeline's, or with --out those of the commands that ran
    there.
    """
    from mamba_neurons import workflow

    workflow.figures(run)


@main.command()
@_settings()
def page(run: Any) -> None:
    """A Mamba's channels to look at, in one self-contained file: page_M.html.

    It shows the folder's own records of this Mamba; those that are missing are made first.
    """
    if run.is_stage:
        fail("name a Mamba of yours (--model M); `make report` has the page of the run")

    from interp_core.models.spec import short_name
    from mamba_neurons import workflow
    from mamba_neurons.page import page as build

    model, name = run.params.model, short_name(run.params.model)

    for command, measure in (("delta", workflow.delta), ("causal", workflow.causal)):
        if not run.is_of(command, f"{command}_{name}", run.sources([model])):
            measure(run)

    build(run, command=typed("mamba-neurons"))


@main.command()
@study_option
@trainings_option
def answers(out: Path | None, trainings: tuple[Path, ...]) -> None:
    """The study's numbers, headlines marked, from its metrics: answers.json."""
    from interp_core.console.answers import write
    from mamba_neurons.answers import answers as found

    write("mamba_neurons", found, out, trainings)


if __name__ == "__main__":
    main()
