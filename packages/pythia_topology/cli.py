"""`induct`: the commands of pythia_topology. Thin: options in, one call."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from interp_core.console.options import (
    Decorator,
    Group,
    fail,
    option,
    profile_option,
    study_option,
    trainings_option,
)

_OPTIONS: tuple[Decorator, ...] = (
    option(
        "--models",
        "models",
        multiple=True,
        metavar="M...",
        help="Models: names of the profile, directories, hub ids.",
    ),
    option("--model", "model", metavar="M", help="One model."),
    option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for scores, JSON and figures.",
    ),
    profile_option,
    option("--device", help="cpu, cuda, cuda:N or mps."),
    option("--dtype", help="float32, bfloat16 or float64."),
    option("--threads", type=int, help="CPU threads."),
    option("--batch-size", type=int, help="Prompts in one forward pass."),
    option("--seed", type=int, help="Seed of every random choice."),
    option(
        "--seq-len", type=int, help="Tokens in a prompt of spaced pairs, names and natural repeats."
    ),
    option("--n-sequences", type=int, help="Prompts of each family."),
    option("--period", type=int, help="Tokens in one copy of the repeated random tokens."),
    option(
        "--lag-values",
        type=int,
        multiple=True,
        metavar="L...",
        help="Lags of spaced pairs, in tokens.",
    ),
    option("--split-lag", type=int, help="Lags up to this one are short."),
    option(
        "--task-types",
        multiple=True,
        metavar="T...",
        help="Families: spaced_pairs (ABAB), names, natural_repeats.",
    ),
    option("--profile-mode", help="mean, top_quantile or count."),
    option(
        "--high-score-quantile",
        type=float,
        help="Quantile of a layer's heads for mode top_quantile.",
    ),
    option("--bootstrap-resamples", type=int, help="Bootstrap draws."),
    option("--permutation-draws", type=int, help="Draws of randomisation tests."),
    option(
        "--equivalence-margin",
        type=float,
        help="Relative depth within which two sizes count as the same.",
    ),
    option("--causal-top-k", type=int, help="Best heads ablated together."),
    option("--topk", "causal_top_k", type=int, help="The same as --causal-top-k."),
    option("--causal-random-k", type=int, help="Heads in a random control set."),
    option("--causal-draws", type=int, help="Layer-matched random sets."),
    option("--causal-sequences", type=int, help="Prompts in interventions and emergence."),
    option(
        "--revisions",
        multiple=True,
        metavar="R...",
        help="Hub branches of training checkpoints, such as step1000.",
    ),
    option(
        "--memory-saver", is_flag=True, help="Accepted: one layer at a time is what always happens."
    ),
    option("--print-prompts", is_flag=True, help="Print two prompts of each family and stop."),
)


_READS_SCORES = ("crosssize", "multisize", "nulls", "lagbuckets", "causal", "composition")


def _with_run(command: Callable[[Any], None]) -> Callable[..., None]:
    """A command that gets a prepared Run instead of its options.

    In an experiment its scores are there first.
    """

    @wraps(command)
    def call(**options: Any) -> None:
        from pythia_topology import workflow
        from pythia_topology.study import prepare

        options.pop("memory_saver")
        only_print = options.pop("print_prompts")
        if (one := options.pop("model")) is not None:
            options["models"] = (*options["models"], one)
        run = prepare(options.pop("profile"), options.pop("out"), **options)
        if only_print:
            workflow.print_prompts(run)
            return
        workflow.check_request(run, command.__name__)
        if run.out and command.__name__ in _READS_SCORES:
            workflow.ensure_scores(run)
        command(run)

    with_options: Callable[..., None] = call
    for add in reversed(_OPTIONS):
        with_options = add(with_options)
    return with_options


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """Do induction heads sit at a stable relative depth across model sizes?

    Called without options a command is a stage of the pipeline (data/pythia_topology). With options
    it is an experiment of yours and writes into --out (default outputs/pythia_topology).
    """


@main.command()
@_with_run
def profile(run: Any) -> None:
    """Scores of all heads and the layer profile: scores_M.npz, profile_M.json and figures."""
    from pythia_topology import workflow

    for name, (arrays, report) in workflow.profile(run).items():
        if run.out:
            from pythia_topology import figures

            figures.draw_profile(arrays, report, name, run.out)


@main.command()
@_with_run
def crosssize(run: Any) -> None:
    """Two sizes on relative depth: cross_size.json, cross_size_overlay.png."""
    from pythia_topology import workflow

    report = workflow.crosssize(run)
    if run.out:
        from pythia_topology import figures

        figures.draw_crosssize(report, run.out / "cross_size_overlay.png")


@main.command()
@_with_run
def multisize(run: Any) -> None:
    """Any number of sizes, all pairs: multi_size.json, multi_size_overlay.png."""
    from pythia_topology import workflow

    report = workflow.multisize(run)
    if run.out:
        from pythia_topology import figures

        figures.draw_crosssize(report, run.out / "multi_size_overlay.png")


@main.command()
@_with_run
def nulls(run: Any) -> None:
    """Permuted heads, shuffled antecedents, untrained model, bootstrap: nulls_M.json,
    nulls_M.png."""
    from pythia_topology import workflow

    for name, (arrays, report) in workflow.nulls(run).items():
        if run.out:
            from pythia_topology import figures

            figures.draw_nulls(report, arrays, name, run.out)


@main.command()
@_with_run
def lagbuckets(run: Any) -> None:
    """Short against long lags: lags_M.json, lag_profiles.png."""
    from pythia_topology import workflow

    reports = workflow.lagbuckets(run)
    if run.out:
        from pythia_topology import figures

        figures.draw_lags(reports, run.out)


@main.command()
@_with_run
def causal(run: Any) -> None:
    """Ablate the best heads beside random ones: causal_M.json, causal_delta.png, dose_M.png."""
    from pythia_topology import workflow

    found = workflow.causal(run)
    if run.out:
        from pythia_topology import figures

        figures.draw_causal({name: report for name, (_, report) in found.items()}, run.out)
        for name, (arrays, report) in found.items():
            figures.draw_dose(report, name, run.out)
            figures.draw_single_heads(report, arrays, name, run.out)


@main.command()
@_with_run
def composition(run: Any) -> None:
    """K-composition z-scores and path patching: composition_M.json, composition_M.png."""
    from pythia_topology import workflow

    for name, (arrays, report, scores) in workflow.composition(run).items():
        if run.out:
            from pythia_topology import figures

            figures.draw_composition(report, arrays, scores, name, run.out)


@main.command()
@_with_run
def emergence(run: Any) -> None:
    """The same scores over training checkpoints: emergence_M.json, emergence.png."""
    from pythia_topology import workflow

    found = workflow.emergence(run)
    if run.out:
        from pythia_topology import figures

        figures.draw_emergence(
            {name: (report, arrays) for name, (arrays, report) in found.items()}, run.out
        )


@main.command("figures")
@_with_run
def all_figures(run: Any) -> None:
    """All figures of the pipeline from its files, into data/pythia_topology/figures."""
    from pythia_topology import workflow

    workflow.figures(run)


@main.command()
@study_option
@trainings_option
def answers(out: Path | None, trainings: tuple[Path, ...]) -> None:
    """The study's headline numbers, from its metrics: answers.json.

    Over several trainings also what they say of sizes: sizes.json, sizes.png.
    """
    from interp_core.console.answers import write, write_over
    from pythia_topology.answers import answers as found

    if not trainings:
        write("pythia_topology", found, out)
    elif out is None:
        fail("--trainings needs --out, a folder for the answers over them")
    else:
        from pythia_topology import workflow

        write_over("pythia_topology", found, trainings, out)
        workflow.sizes(trainings, out)
