"""The study's commands, and a profile of its own that takes seconds."""

from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner, Result

from cursive_circuits.cli import main

SMOKE = Path(__file__).parents[1] / "profiles" / "smoke.yaml"


def call(*arguments: str) -> Result:
    """A command as a person types it."""
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def write_profile(path: Path, source: dict[str, str] | None, **recipe: Any) -> Path:
    """The smoke profile with a bank of one's own and another recipe for both models, trained one
    after the other.
    """
    profile = yaml.safe_load(SMOKE.read_text())
    section = profile["cursive_circuits"]
    section["bank"]["source"] = source
    section["bank"]["published"] = {"dropped": 0.0, "slant": 0.0}
    section["processes"] = 1
    for model in ("handwriting", "control"):
        section[model]["recipe"] |= recipe
    path.write_text(yaml.safe_dump(profile))
    return path
