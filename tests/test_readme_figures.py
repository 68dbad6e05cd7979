"""A committed figure answers a question in a README; a README names no figure that is not there."""

import re
from pathlib import Path

from drawn_figures import committed_figures

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", *sorted((ROOT / "packages").glob("*/README.md"))]


def linked() -> dict[Path, Path]:
    """Every picture in the project that a README shows or links, with that README."""
    found = {}

    for readme in READMES:
        for target in re.findall(r"\]\(([^)\s]+\.png)\)", readme.read_text()):
            found[(readme.parent / target).resolve()] = readme

    return found


def test_a_readme_names_no_figure_that_is_not_there() -> None:
    missing = {
        str(path.relative_to(ROOT)): str(readme.relative_to(ROOT))
        for path, readme in linked().items()
        if not path.is_file()
    }
    assert not missing


def test_every_committed_figure_is_shown_or_linked_in_a_readme() -> None:
    committed = committed_figures(ROOT)

    # A figure that the last run no longer drew is gone from the disk before it is from git.
    assert not sorted(
        str(path.relative_to(ROOT)) for path in committed - linked().keys() if path.is_file()
    )
