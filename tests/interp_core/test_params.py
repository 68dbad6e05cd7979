"""Profiles: found, checked, and refused in one line that names the file, the key and the mend."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, PositiveInt, ValidationError, model_validator

import cursive_circuits.study
import eigen_phase.study
from interp_core.errors import InputError
from interp_core.files.params import (
    Params,
    check,
    profile_path,
    project_root,
    read_section,
    read_yaml,
)
from torture.damage import places_of
from torture.profiles import SECTIONS

ROOT = Path(__file__).parents[2]
SMALL, LARGE = 1e-100, 1e100  # the ends of what can be reckoned with
# What a slip, or somebody who is curious, makes of a number.
EXTREMES = (0, 10**9, 2**63 - 1, SMALL, LARGE, "1e-320")
# Sections of hundreds of numbers, whose validators compare and do not divide.
LONG = ("eigen_phase", "cursive_circuits")


class Inner(Params):
    """A section within the section."""

    width: PositiveInt
    names: tuple[str, ...] = ()


class Study(Params):
    """A section of a profile."""

    period: PositiveInt
    share: float = Field(default=0.5, gt=0, lt=1)
    inner: Inner | None = None
    models: Mapping[str, Inner] = Field(default_factory=dict)
    weights: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> "Study":
        if self.period > 100:
            raise ValueError("a period above 100 is too long")
        return self


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("profile: first\n")
    (tmp_path / "profiles" / "first.yaml").write_text("study: {period: 3}\n")
    (tmp_path / "profiles" / "second.yaml").write_text("study: {period: 4, share: 0.25}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(values: Any, **given: Any) -> str:
    with pytest.raises(InputError) as problem:
        check(Study, values, where="here.yaml: study", **given)
    assert "\n" not in str(problem.value)
    return str(problem.value)


@pytest.mark.usefixtures("project")
def test_the_profile_is_the_one_named_or_the_projects() -> None:
    assert read_section("study", Study).period == 3
    assert read_section("study", Study, "second") == Study(period=4, share=0.25)
    assert read_section("study", Study, "profiles/second.yaml").period == 4


@pytest.mark.usefixtures("project")
def test_an_override_that_is_given_replaces_the_profiles_value() -> None:
    assert read_section("study", Study, "second", period=7, share=None) == Study(
        period=7, share=0.25
    )


def test_the_project_is_found_from_inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = project / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert project_root() == project
    assert profile_path() == project / "profiles" / "first.yaml"


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("prepare", [eigen_phase.study.prepare, cursive_circuits.study.prepare])
def test_experiments_of_profiles_whose_names_differ_after_a_dot_have_folders_of_their_own(
    prepare: Callable[..., Any], project: Path
) -> None:
    smoke = Path(__file__).parents[2] / "profiles" / "smoke.yaml"
    names = ("tiny-1.4b", "tiny-1.7b")
    for name in names:
        (project / "profiles" / f"{name}.yaml").write_text(smoke.read_text())
    given = [*names, *(f"profiles/{name}.yaml" for name in names)]
    assert [prepare(profile, None).folder.name for profile in given] == [*names, *names]


def test_values_never_change_after_reading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Study(period=3).period = 4  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"share": 0.1}, "here.yaml: study: `period`: Field required"),
        ({"period": 3, "shar": 1}, "here.yaml: study: unknown key `shar`; did you mean `share`?"),
        (
            {"period": 3, "zzz": 1},
            "unknown key `zzz`; known here: period, share, inner, models, weights",
        ),
        (
            {"period": 3, "inner": {"width": 1, "nmes": []}},
            "unknown key `inner.nmes`; did you mean `names`?",
        ),
        ({"period": 3, "models": {"a": {"width": 1, "widht": 2}}}, "unknown key `models.a.widht`"),
        ({"period": "x"}, "here.yaml: study: `period`: Input should be a valid integer"),
        ({"period": 0}, "here.yaml: study: `period`: Input should be greater than 0, got '0'"),
        ({"period": 3, "share": 1}, "`share`: Input should be less than 1, got '1'"),
        ({"period": 101}, "here.yaml: study: a period above 100 is too long"),
    ],
)
def test_the_first_thing_that_is_wrong_is_named(values: dict[str, Any], says: str) -> None:
    assert says in refusal(values)


def test_an_option_is_named_as_it_was_typed_and_the_file_is_not() -> None:
    said = refusal({"period": 3, "share": 2.0}, options=("share",))
    assert said == "--share: Input should be less than 1, got '2.0'"
    assert "here.yaml" in refusal({"period": 0, "share": 0.5}, options=("share",))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no sections"),
        ("- 1\n", "holds no sections"),
        ("a: [1\n", "not valid YAML"),
        ("stdy: {period: 3}\n", "has no section `study`; did you mean `stdy`?"),
        ("other: {}\n", "has no section `study`; known here: other"),
        ("study: 3\n", "section `study` holds no keys"),
        ("study:\n", "section `study` holds no keys"),
    ],
)
def test_a_file_that_is_no_profile_is_named(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as problem:
        read_section("study", Study, str(file))
    assert says in str(problem.value)
    assert str(file) in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_profile_that_is_not_there_names_those_that_are(project: Path) -> None:
    with pytest.raises(InputError, match=r"no profile .*third.yaml; known here: first, second"):
        profile_path("third")
    (project / "params.yaml").write_text("prof: first\n")
    with pytest.raises(InputError, match="needs one line, `profile: NAME`"):
        profile_path()


def test_a_file_that_cannot_be_parsed_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: 1\nb: {\n")
    with pytest.raises(InputError, match="line 3"):
        read_yaml(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (10**400, "`period`: Input should be a number of at most 64 bits, got a number of"),
        (float("inf"), "`period`: Input should be a finite number, got 'inf'"),
        ("\ud800", "`period`: Input should be valid Unicode text"),
        ("a\0b", "`period`: Input should be a text without NUL"),
        ([3, float("nan")], "`period`: Input should be a finite number"),
        ("x" * 10**6, "`period`: Input should be a text of at most 100000 characters"),
        (1e-320, "`period`: Input should be zero or a number between 1e-100 and 1e+100"),
        (-1e308, "`period`: Input should be zero or a number between 1e-100 and 1e+100"),
    ],
)
def test_what_no_setting_can_be_is_refused_with_its_key(value: Any, told: str) -> None:
    assert told in refusal({"period": value})
    assert told.replace("period", "inner.width") in refusal(
        {"period": 3, "inner": {"width": value}}
    )
    assert refusal({"period": value}, options=["period"]).startswith("--period: ")


@pytest.mark.parametrize("value", ["1e-320", 1e-320, " 1e-200", 5e-324])
def test_a_number_is_looked_at_whether_or_not_it_stood_in_quotes(value: Any) -> None:
    told = "Input should be zero or a number between"
    assert f"`share`: {told}" in refusal({"period": 3, "share": value})
    assert f"--share: {told}" in refusal({"period": 3, "share": value}, options=["share"])
    assert f"`weights`: {told}" in refusal({"period": 3, "weights": {"a": value}})
    assert "`period`: Input should be a number of at most 64 bits" in refusal({"period": "9" * 30})


@pytest.mark.parametrize(
    "section",
    [pytest.param(one, marks=pytest.mark.slow) if one in LONG else one for one in SECTIONS],
)
def test_no_number_of_a_profile_ends_in_arithmetic(section: str) -> None:
    values = read_yaml(ROOT / "profiles" / "smoke.yaml")[section]
    refused = 0

    for holder, key in places_of(values):
        found = holder[key]
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        # Of a list the first: the others are of the same kind.
        if not is_number or (isinstance(holder, list) and key > 0):
            continue
        for odd in EXTREMES:
            holder[key] = odd
            # A validator that reckons with it must not end in an error of arithmetic.
            with suppress(InputError):
                check(SECTIONS[section], values, where=section)
                refused -= 1
            refused += 1
        holder[key] = found

    assert refused > len(EXTREMES)


# Settings of any size that profiles write without a point.
NO_COUNTS = ("save_seconds", "candidates")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_count_of_a_profile_has_a_bound_and_no_seed_has(section: str) -> None:
    values = read_yaml(ROOT / "profiles" / "smoke.yaml")[section]
    looked_at = set[str]()

    for holder, key in places_of(values):
        found = holder[key]
        is_whole = isinstance(found, int) and not isinstance(found, bool)
        # Of lists there is another test.
        if not is_whole or isinstance(holder, list) or key in (*looked_at, *NO_COUNTS):
            continue

        looked_at.add(key)
        if key == "seed":
            holder[key] = 2**62
            check(SECTIONS[section], values, where=section)
        else:
            # Some have a smaller one of their own.
            most = "4096" if key in ("threads", "processes") else "[0-9]+"
            holder[key] = 10**9 + 1
            told = f"{key}`: Input should be less than or equal to {most}, got"
            with pytest.raises(InputError, match=told):
                check(SECTIONS[section], values, where=section)
        holder[key] = found

    assert looked_at


@pytest.mark.parametrize("profile", ["laptop", "long", "paper"])
def test_no_bound_is_below_a_committed_profile(profile: str) -> None:
    for section, values in read_yaml(ROOT / "profiles" / f"{profile}.yaml").items():
        if section in SECTIONS:
            check(SECTIONS[section], values, where=section)


@pytest.mark.parametrize("value", [10**9 + 1, "1000000001", 2**62])
def test_a_count_is_refused_by_its_key_alone_in_a_list_and_in_quotes(value: Any) -> None:
    class Counts(Params):
        """Of a study."""

        draws: PositiveInt
        sizes: tuple[PositiveInt, ...] = ()
        seeds: tuple[PositiveInt, ...] = ()

    told = "Input should be less than or equal to 1000000000"
    for values, key in (({"draws": value}, "draws"), ({"draws": 1, "sizes": [1, value]}, "sizes")):
        with pytest.raises(InputError, match=f"`{key}`: {told}"):
            check(Counts, values, where="study")
    assert check(Counts, {"draws": 10**9, "seeds": [2**62]}, where="study").draws == 10**9


_LAUGHS = "\n".join(
    ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", "`a` stands twice (line 3)"),
        ("a: {b: 1, b: 2}\n", "`b` stands twice"),
        (_LAUGHS, "its aliases stand for"),
        ("a: &a [*a]\n", "an alias holds itself"),
        ("a: " + "[" * 5000, "too many brackets"),
        ("a: 2026-13-45\n", "holds a value that cannot be: month must be in 1..12"),
        ("a: !!timestamp x\n", "holds a value that cannot be"),
        ("a: " + "9" * 5000, "holds a value that cannot be"),
        ("[1, 2]", "holds no sections"),
        ("1: 2", "`1` is no name of a section"),
        ("a: 1\n---\na: 2\n", "not valid YAML"),
    ],
)
def test_yaml_that_would_be_read_without_a_word_is_refused(
    text: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError) as problem:
        read_yaml(tmp_path / "own.yaml")
    assert told in str(problem.value)
    assert len(str(problem.value).splitlines()) == 1


def test_a_profile_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes("a: 1".encode("utf-16"))
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_yaml(tmp_path / "own.yaml")
