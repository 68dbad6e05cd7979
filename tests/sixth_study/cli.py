"""`sixth-study`: the commands of this study. Thin: options in, one call."""

from pathlib import Path
from typing import Any

import click

from interp_core.console.options import Group, out_option, profile_option, settings, study_option


def _start(command: str, *, settings: dict[str, Any], profile: str | None, out: Path | None) -> Any:
    """The call of a command, its folder looked at."""
    from sixth_study import study

    del command
    run = study.prepare(profile, out, **settings)
    run.check_folder()
    return run


_settings = settings(__file__, _start, more=(profile_option, out_option))


@click.group(cls=Group)
def main() -> None:
    """Does any head look one token back, and how surely?"""


@main.command()
@_settings()
def measure(run: Any) -> None:
    """Attention to the token before: M.npz, M.json."""
    from sixth_study import workflow

    workflow.measure(run)


@main.command()
@_settings()
def figures(run: Any) -> None:
    """A map of heads: M.png."""
    from sixth_study import workflow

    workflow.figures(run)


@main.command()
@study_option
def answers(out: Path | None) -> None:
    """The study's numbers, headlines marked, from its metrics: answers.json."""
    from interp_core.console.answers import write
    from sixth_study.answers import answers as found

    write("sixth_study", found, out)


if __name__ == "__main__":
    main()
