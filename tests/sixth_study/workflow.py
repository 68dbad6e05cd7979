"""What each command does, from settings to files."""

import click

from sixth_study.study import Sixth


def measure(run: Sixth) -> None:
    """Attention to the token before, of each model."""
    from interp_core.loading import load_model
    from interp_core.models.spec import short_name, spec_of
    from sixth_study.measure import previous_token

    for model in run.params.models:
        name = short_name(model)
        subject = load_model(spec_of(model, run.known), name=name)
        arrays, report = previous_token(
            subject, run.params, run.rng("prompts"), run.rng("intervals")
        )

        report = {"name": name, **report}
        made = run.made_from(run.sources([model]))
        run.save("measure", name, report, arrays, made=made)
        click.echo(f"{name}: {report['best']} {report['attention']['value']:.2f}")


def figures(run: Sixth) -> None:
    """A map of heads for each model."""
    from interp_core.models.spec import short_name
    from sixth_study.figures import draw

    for name in map(short_name, run.params.models):
        arrays, report = run.load("measure", name)
        draw(arrays, report, run.folder / "figures" / f"{name}.png")
