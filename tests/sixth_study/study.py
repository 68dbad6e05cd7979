"""What a call of one of this study's commands is."""

from pathlib import Path
from typing import Any

from interp_core.console import call
from interp_core.console.call import Call
from interp_core.files.params import read_section
from interp_core.models.spec import catalogue
from sixth_study.params import SixthStudy
from sixth_study.streams import STREAMS

Sixth = Call[SixthStudy]


def prepare(profile: str | None, out: Path | None, **given: Any) -> Sixth:
    """Settings of a profile and the options given, and the folder they belong to."""
    params = read_section("sixth_study", SixthStudy, profile, **given)
    return call.start(
        "sixth_study",
        params,
        known=catalogue(profile),
        profile=profile,
        out=out,
        given=bool(given),
        streams=STREAMS,
        flat=False,
    )
