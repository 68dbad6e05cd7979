"""Overlays over a base: merged key by key, with two tags for what that cannot say."""

from pathlib import Path

import pytest
import yaml

from interp_core.errors import InputError
from interp_core.pipeline.overlays import composed, overlays

BASE = """# The base.
training:
  # How long
  steps: 700
  rate: 4.0e-3
  also: [260, 280]
  # What
  models: {small: {layers: 4}, large: {layers: 8}}

text: {length: 48}
"""


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """A folder of profiles with a base."""
    (tmp_path / "overlays").mkdir()
    (tmp_path / "laptop.yaml").write_text(BASE)
    return tmp_path


def compose(profiles: Path, overlay: str) -> str:
    (profiles / "overlays" / "tiny.yaml").write_text(overlay)
    return composed(profiles, overlays(profiles)["tiny"])


def test_mappings_merge_and_everything_else_replaces(profiles: Path) -> None:
    text = compose(
        profiles, "# Tiny.\ntraining: {steps: 4, also: [], models: {small: {layers: 1}}}\n"
    )
    assert yaml.safe_load(text) == {
        "training": {
            "steps": 4,
            "rate": 4.0e-3,
            "also": [],
            "models": {"small": {"layers": 1}, "large": {"layers": 8}},
        },
        "text": {"length": 48},
    }


def test_replace_takes_the_place_of_a_whole_mapping(profiles: Path) -> None:
    text = compose(profiles, "training:\n  models: !replace\n    tiny: {layers: 2}\n")
    assert yaml.safe_load(text)["training"]["models"] == {"tiny": {"layers": 2}}


def test_new_adds_a_key_a_number_as_well_as_a_mapping(profiles: Path) -> None:
    text = compose(
        profiles, "text: {limit: !new 200}\ntraining: {models: {huge: !new {layers: 12}}}\n"
    )
    found = yaml.safe_load(text)
    assert found["text"] == {"length": 48, "limit": 200}
    assert found["training"]["models"]["huge"] == {"layers": 12}


def test_comments_and_spellings_of_numbers_survive_and_the_header_is_the_overlays(
    profiles: Path,
) -> None:
    text = compose(profiles, "# Tiny.\ntraining: {also: [3]}\n")
    lines = text.splitlines()
    assert (
        lines[0]
        == "# Written by `make stages` from laptop.yaml and overlays/tiny.yaml: edit those."
    )
    assert lines[1] == "# Tiny."
    assert "# The base." not in text
    assert "  # How long\n  steps: 700\n  rate: 4.0e-3\n  also: [3]\n  # What\n" in text
    assert "\n\ntext:" in text


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        (
            "training: {stepz: 4}\n",
            r"tiny\.yaml: `training\.stepz` is not in laptop\.yaml.*did you mean `steps`",
        ),
        ("trainning: {steps: 4}\n", r"`trainning` is not in laptop\.yaml.*did you mean `training`"),
        (
            "training: {steps: !new 4}\n",
            r"`training\.steps` is marked !new, but laptop\.yaml has it",
        ),
        ("training: [\n", "not valid YAML"),
    ],
)
def test_a_key_that_the_base_lacks_is_named(profiles: Path, overlay: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compose(profiles, overlay)
