"""One call of a command: whose folder it is, what its records were made from, whose names they
have.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp_core import processor
from interp_core.console import call
from interp_core.console.call import Call
from interp_core.console.made_from import Source
from interp_core.errors import InputError
from interp_core.files.params import Params
from interp_core.streams import Stream, Streams


class Settings(Params):
    """Of a study of one number."""

    seed: int
    threads: int = 1


STREAMS = Streams({"pick": Stream(7)})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two profiles, as the working directory."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("profile: first\n")
    for name in ("first", "second"):
        (tmp_path / "profiles" / f"{name}.yaml").write_text("models: {}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(seed: int = 0, **options: Any) -> Call[Settings]:
    return call.start("pythia_topology", Settings(seed=seed), streams=STREAMS, **options)


def model(folder: Path) -> str:
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (folder / file).touch()
    return str(folder)


def test_a_bare_call_is_a_stage_and_any_option_makes_an_experiment(project: Path) -> None:
    assert started().folder == project / "data" / "pythia_topology"
    assert started(given=True).folder == project / "outputs" / "pythia_topology" / "first"
    assert started(given=True).home == started().folder


def test_two_models_or_two_profiles_never_share_a_default_folder(project: Path) -> None:
    own = project / "second.yaml"
    own.write_text("models: {}\n")
    models = [model(project / name / "final") for name in ("a", "b")]
    calls = [started(subjects=[one]) for one in models]
    calls += [started(profile=profile) for profile in ("first", "second", str(own))]
    assert len({one.folder for one in calls}) == 5


def test_a_stream_has_the_bytes_of_its_number(project: Path) -> None:
    wanted = np.random.default_rng([3, 7]).random(4)
    np.testing.assert_array_equal(started(seed=3).rng("pick").random(4), wanted)


def test_a_record_vouches_only_for_what_it_was_made_from(project: Path) -> None:
    run, sources = started(out=project / "out"), {"a": Source("models/a", "1")}
    made = run.made_from(sources)
    run.save("profile", "profile_a", {"n": 1}, {"x": np.ones(2)}, made=made)
    assert run.is_made("profile", "profile_a", made)

    others = [
        run.made_from({"a": Source("models/a", "2")}),
        run.made_from(sources, read=["text"]),
        started(seed=1, out=project / "out").made_from(sources),
    ]
    assert not any(run.is_made("profile", "profile_a", other) for other in others)
    assert run.is_of("profile", "profile_a", sources)


def test_what_was_measured_natively_is_measured_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(out=project / "out")
    monkeypatch.setenv(processor.SWITCH, "native")
    natively = run.made_from({})
    assert natively["instructions"] == "native"

    monkeypatch.delenv(processor.SWITCH)
    if processor.instructions() == "avx2":
        assert run.made_from({}) == {
            key: value for key, value in natively.items() if key != "instructions"
        }


def test_a_name_means_one_model_in_a_folder(project: Path) -> None:
    run = started(out=project / "out")
    made = run.made_from({"final": Source("a/final", "1")})
    run.save("profile", "profile_final", {"n": 1}, made=made)
    run.check_names({"final": "a/final"})
    with pytest.raises(InputError, match="is of a/final, and b/final has the same name final"):
        run.check_names({"final": "b/final"})


@pytest.mark.parametrize(
    "content",
    [
        '{"made_from": "by hand"}',
        '{"made_from": {"models": ["a"]}}',
        '{"made_from": {"models": {"a": "b"}}}',
        '{"made_from": {"models": {"a": {"place": 3}}}}',
        '{"made_from": {"models": {"a": {}}}}',
        '{"made_from": [[]]}',
        '["made_from"]',
        "9" * 5000,
        "[" * 200_000,
        '{"made_from": ',
        "\xff",
    ],
)
def test_a_users_json_in_the_folder_is_no_record(content: str, project: Path) -> None:
    run, sources = started(out=project / "out"), {"a": Source("a", "1")}
    run.folder.mkdir()
    run.file("metrics", "profile", "notes").write_text(content, encoding="latin-1")
    run.check_names({"a": "somewhere/a"})
    if content.endswith("}"):
        assert not run.is_of("profile", "notes", sources)


def _unwritable(folder: Path) -> Path:
    """A folder whose probe cannot be removed: root may write into any other."""
    (folder / ".writable").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("which", ["out", "plots", "out/plots"])
def test_every_folder_is_tried_before_anything_is_measured(which: str, project: Path) -> None:
    run = started(out=project / "out")
    figures = project / ("plots" if which == "plots" else "out/plots")
    folder = _unwritable(project / which)
    with pytest.raises(InputError, match=f"cannot write into {folder}"):
        replace(run, figures=figures).check_folder()


def test_a_stage_writes_no_mark(project: Path) -> None:
    run = started()
    run.save("profile", "profile_a", {"n": 1}, made=run.made_from({}))
    assert run.file("metrics", "profile", "profile_a").read_text() == '{\n  "n": 1\n}\n'


def test_a_folder_without_a_model_is_refused_before_anything_is_loaded(project: Path) -> None:
    (project / "empty").mkdir()
    (project / "quantised").mkdir()
    (project / "quantised" / "m.gguf").touch()
    for name, says in (("empty", "has no config.json"), ("quantised", "is GGUF; convert it")):
        with pytest.raises(InputError, match=says):
            started(given=True).check_models([name])
