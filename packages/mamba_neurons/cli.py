"""`mamba-neurons`: the commands of the study. Thin: options in, one call."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from interp_core.console.options import Decorator, Group, option, profile_option, study_option

_FOLDER = click.Path(path_type=Path, file_okay=False)
_OPTIONS: tuple[Decorator, ...] = (
    option("--model", metavar="M", help="A Mamba: a name of the profile, a directory, a hub id."),
    option("--transformer", metavar="M", help="What it is compared with; another Mamba will do."),
    option(
        "--own-tokens",
        is_flag=True,
        default=None,
        help="Compare models with different tokenizers all the same.",
    ),
    option(
        "--layer", type=int, help="The layer whose channels are all ablated exactly, in three ways."
    ),
    option("--top-k", type=int, help="Units of a ranking that are named."),
    option("--text-limit", type=int, help="Texts that are read."),
    option("--text-length", type=int, help="Tokens of a text; longer ones are cut."),
    option(
        "--texts",
        type=click.Path(path_type=Path),
        help="A UTF-8 file (texts between blank lines) or a folder.",
    ),
    option("--repeats", type=int, help="Rows of repeated random tokens beside the texts."),
    option(
        "--enable-attention",
        is_flag=True,
        default=None,
        help="`run` includes the attention neurons.",
    ),
    option(
        "--attention-methods",
        multiple=True,
        metavar="A...",
        help="attention_weighted, gradient_guided, rollout.",
    ),
    option(
        "--sparsity-layers",
        type=int,
        multiple=True,
        metavar="L...",
        help="Layers whose sparsity is measured.",
    ),
    option("--label-draws", type=int, help="Labels drawn for the Fisher estimate of KL."),
    option(
        "--least-agreement",
        type=float,
        help="Rank agreement below which a layer is computed exactly.",
    ),
    option("--bootstrap-resamples", type=int, help="Bootstrap draws."),
    option("--permutation-draws", type=int, help="Draws of randomisation tests."),
    option("--batch-size", type=int, help="Texts in one forward pass."),
    option("--seed", type=int, help="Seed of every random choice."),
    option("--device", help="cpu, cuda, cuda:N or mps."),
    option("--dtype", help="float32, bfloat16 or float64."),
    option("--threads", type=int, help="CPU threads."),
    option(
        "--out", type=_FOLDER, help="Folder for arrays and JSON (default: outputs/mamba_neurons)."
    ),
    option("--plots-dir", "plots", type=_FOLDER, help="Folder for figures (default: OUT/plots)."),
    profile_option,
)


def _with_run(command: Callable[..., None]) -> Callable[..., None]:
    """A command that gets a prepared Run instead of its options, and whose figures are drawn in an
    experiment.
    """

    @wraps(command)
    def call(**options: Any) -> None:
        from mamba_neurons.study import prepare

        own = {name: options.pop(name) for name in ("save_results",) if name in options}
        run = prepare(options.pop("profile"), options.pop("out"), options.pop("plots"), **options)
        command(run, **own)

    with_options: Callable[..., None] = call
    for add in reversed(_OPTIONS):
        with_options = add(with_options)
    return with_options


def _draw(run: Any, command: str) -> None:
    """An experiment's figures, from the files that it has just written."""
    if run.out is not None:
        from mamba_neurons import figures

        figures.draw(command, run.names, run.place, run.plots)


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """Which neurons of a Mamba matter, to what, and how few of them are enough?

    Called without options a command is a stage of the pipeline (data/mamba_neurons). With options
    it is an experiment of yours and writes into --out (default outputs/mamba_neurons).
    """


@main.command("run")
@option("--save-results", is_flag=True, help="Write all reports into one file, results_M.json.")
@_with_run
def whole(run: Any, *, save_results: bool) -> None:
    """The whole analysis: delta, causal, inter-layer, cross-layer, attention (--enable-attention),
    sparsity, efficiency, compare, and their figures.
    """
    from dataclasses import replace

    from interp_core.files.params import project_root
    from mamba_neurons import figures, workflow

    out = run.out or project_root() / "outputs" / "mamba_neurons"
    run = replace(run, out=out, both=True, plots=run.plots if run.out else out / "plots")
    workflow.whole_run(run, save_results=save_results)
    for command in figures.COMMANDS:
        if command != "attention" or run.params.enable_attention:
            figures.draw(command, run.names, run.place, run.plots)


@main.command()
@_with_run
def delta(run: Any) -> None:
    """Delta-sensitive neurons: between- and within-text variance of dt, half-lives, selectivity:
    delta_M.json.
    """
    from mamba_neurons import workflow

    workflow.delta(run)
    _draw(run, "delta")


@main.command()
@_with_run
def causal(run: Any) -> None:
    """Causal neurons: exact effects of a layer, calibrated estimates of the model: causal_M.json."""
    from mamba_neurons import workflow

    workflow.causal(run)
    _draw(run, "causal")


@main.command("inter-layer")
@_with_run
def inter_layer(run: Any) -> None:
    """KL of the same residual dimension by layer: inter_layer_M.json."""
    from mamba_neurons import workflow

    workflow.inter_layer(run)
    _draw(run, "inter_layer")


@main.command("cross-layer")
@_with_run
def cross_layer(run: Any) -> None:
    """What the best channels do to later ones, against random channels: cross_layer_M.json."""
    from mamba_neurons import workflow

    workflow.cross_layer(run)
    _draw(run, "cross_layer")


@main.command()
@_with_run
def attention(run: Any) -> None:
    """Attention neurons by three methods, with deletion and insertion curves: attention_M.json."""
    from mamba_neurons import workflow

    workflow.attention(run)
    _draw(run, "attention")


@main.command()
@_with_run
def sparsity(run: Any) -> None:
    """Population and lifetime sparsity, the seed's measures with their thresholds, kinds of neuron:
    sparsity_M.json.
    """
    from mamba_neurons import workflow

    workflow.sparsity(run)
    _draw(run, "sparsity")


@main.command()
@_with_run
def efficiency(run: Any) -> None:
    """Active neurons, and how few keep the loss: efficiency_M.json."""
    from mamba_neurons import workflow

    workflow.efficiency(run)
    _draw(run, "efficiency")


@main.command()
@_with_run
def compare(run: Any) -> None:
    """The Mamba beside the transformer on the same tokens: compare_M_T.json."""
    from dataclasses import replace

    from mamba_neurons import workflow

    run = replace(run, both=True)
    workflow.compare(run)
    _draw(run, "compare")


@main.command("figures")
@_with_run
def all_figures(run: Any) -> None:
    """All figures of the pipeline from its files, into data/mamba_neurons/figures."""
    from mamba_neurons import workflow

    workflow.figures(run)


@main.command()
@_with_run
def page(run: Any) -> None:
    """The Mamba's channels to look at, in one self-contained file: page_M.html."""
    from mamba_neurons import workflow
    from mamba_neurons.page import page as build

    if run.out is not None:
        for measure in (workflow.delta, workflow.causal):
            if not (run.out / f"{measure.__name__}_{run.names[0]}.json").is_file():
                measure(run)

    build(run)


@main.command()
@study_option
def answers(out: Path | None) -> None:
    """The study's headline numbers, from its metrics: answers.json."""
    from interp_core.console.answers import write
    from mamba_neurons.answers import answers as found

    write("mamba_neurons", found, out)


if __name__ == "__main__":
    main()
