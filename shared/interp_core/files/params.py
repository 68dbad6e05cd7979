"""A profile (profiles/*.yaml) as frozen, checked parameters."""

import difflib
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from interp_core.errors import InputError, first_line
from interp_core.files.profile_yaml import NotAProfile, parse

# Beyond this an integer fits no array, no seed and no counter of PyTorch's.
_LARGEST = 2**63 - 1
# Beyond these a number, or one over it, times another overflows: no setting comes near.
_SMALL, _LARGE = 1e-100, 1e100
_ODD = "odd_value"
_LONGEST = 10**5  # characters of one text
# Prompts, draws, steps or units beyond this fit no array and no lifetime: no count comes near.
_MOST = 10**9
# More CPU threads or processes than any machine has processors.
MOST_AT_ONCE = 4096
_AT_ONCE = ("threads", "processes")
_SEEDS = ("seed", "seeds")  # no counts: any number of 64 bits is as good as another


class Params(BaseModel):
    """Base of every section of a profile: unknown keys are errors, values never change after
    reading, every number is finite, fits into 64 bits, and can be reckoned with, and every count
    is one that can be counted to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, dict) else ():
            if (odd := odd_value(value)) is not None:
                raise PydanticCustomError(_ODD, "{what}", {"what": odd, "key": str(key)})
        return values

    @model_validator(mode="after")
    def _ordinary(self) -> "Params":
        # Once more: a number may have stood in quotes. Before a section's own validators, which
        # reckon with it.
        for key in type(self).model_fields:
            value = getattr(self, key)
            values = [*value, *value.values()] if isinstance(value, dict) else value
            odd = odd_value(values) or _too_many(key, value)
            if odd is not None:
                raise PydanticCustomError(_ODD, "{what}", {"what": odd, "key": key})
        return self


def odd_value(value: Any) -> str | None:
    """What is wrong with a number or a text that no setting can have, alone or in a list.

    A section inside a section looks after itself; of other mappings the keys are looked at.
    """
    if isinstance(value, list | tuple | dict):
        return next((odd for one in value if (odd := odd_value(one)) is not None), None)
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "Input should be a number of at most 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return "Input should be a finite number"
    if isinstance(value, float) and value and not _SMALL <= abs(value) <= _LARGE:
        return f"Input should be zero or a number between {_SMALL:g} and {_LARGE:g}"
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"Input should be a text of at most {_LONGEST} characters"
    if isinstance(value, str) and _is_broken(value):
        return "Input should be valid Unicode text; it holds half of a character"
    if isinstance(value, str) and "\0" in value:
        return "Input should be a text without NUL"
    return None


def _too_many(key: str, value: Any) -> str | None:
    """What is wrong with a setting's whole number, or one in its list, that is too large a count.

    A mapping's are looked at by the section that they end in.
    """
    if key in _SEEDS:
        return None

    most = MOST_AT_ONCE if key in _AT_ONCE else _MOST
    counts = value if isinstance(value, list | tuple) else [value]
    too_many = any(isinstance(count, int) and count > most for count in counts)
    return f"Input should be less than or equal to {most}" if too_many else None


def _is_broken(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


P = TypeVar("P", bound=Params)

_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def _fits_a_file(name: str) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(
            "becomes a file's name: letters, digits, `-`, `_` and `.` alone, not beginning with a "
            "dot"
        )
    return name


# Any key or value that becomes part of a path. A name with a slash in it would be somebody's
# folder.
FileName = Annotated[str, AfterValidator(_fits_a_file)]


def file_name(name: Any, *, where: str) -> str:
    """The name itself, where it may be a file's.

    InputError, beginning with `where`, for anything else.
    """
    try:
        return _fits_a_file(str(name))
    except ValueError as problem:
        raise InputError(f"{where}: {name!r} {first_line(problem)}") from None


# What a wheel brings, and a checkout does not have: its profiles lie above.
_PACKAGED = Path(__file__).resolve().parents[1] / "settings"


def project_root() -> Path:
    """The project's folder: the nearest one above the working directory, else the checkout that
    this file is installed from; where it was installed without one, the working directory.
    """
    if (found := _project()) is not None:
        return found

    if _is_settings(_PACKAGED):
        return Path.cwd()

    raise InputError(
        f"no params.yaml beside a profiles folder in {Path.cwd()} or above it; run inside the "
        "project's folder"
    )


def settings_root() -> Path:
    """The folder of params.yaml and profiles/: the project's, or those that came with a wheel."""
    return _project() or (_PACKAGED if _is_settings(_PACKAGED) else project_root())


def _project() -> Path | None:
    here = Path.cwd()
    folders = [here, *here.parents, *Path(__file__).resolve().parents]
    return next((folder for folder in folders if _is_settings(folder)), None)


def _is_settings(folder: Path) -> bool:
    return (folder / "params.yaml").is_file() and (folder / "profiles").is_dir()


def profile_path(profile: str | None = None) -> Path:
    """The file of a profile: a name in profiles/, a path to a .yaml, or (None) the one that
    params.yaml names.
    """
    if profile is None:
        root = settings_root()
        chosen = read_yaml(root / "params.yaml").get("profile")
        if not isinstance(chosen, str):
            raise InputError(f"{root / 'params.yaml'}: needs one line, `profile: NAME`")
        profile = chosen

    is_file = profile.endswith((".yaml", ".yml"))
    if not is_file:
        file_name(profile, where="profile")
    path = Path(profile) if is_file else settings_root() / "profiles" / f"{profile}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in (path.parent).glob("*.yaml"))
        raise InputError(f"no profile {path}; known here: {', '.join(known) or 'none'}")
    return path


def read_section(section: str, schema: type[P], profile: str | None = None, **overrides: Any) -> P:
    """One section of a profile, checked against its schema; overrides that are not None replace its
    top-level keys.

    Raises InputError naming the file, the key and, for a misspelt key, the nearest right one; for
    an override it names the option instead of the file.
    """
    path = profile_path(profile)
    content = read_yaml(path)
    if section not in content:
        raise InputError(f"{path}: has no section `{section}`{nearest(section, list(content))}")
    if not isinstance(content[section], dict):
        raise InputError(f"{path}: section `{section}` holds no keys")
    given = {key: value for key, value in overrides.items() if value is not None}
    return check(schema, content[section] | given, where=f"{path}: {section}", options=tuple(given))


def check(schema: type[P], values: Any, *, where: str, options: Collection[str] = ()) -> P:
    """Validate values against a schema; InputError in one line for the first thing that is wrong.

    `options` are the keys whose values were given on the command line.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as problem:
        # A misspelt key is also a missing one: name the spelling first.
        first = min(problem.errors(), key=lambda error: error["type"] != "extra_forbidden")
        # A key of a mapping that is wrong itself has one part more, pydantic's own word for it.
        location = (*first["loc"], *_own_key(first))
        key = _shortened(".".join(str(part) for part in location if part != "[key]"))
        if first["type"] == "extra_forbidden":
            names = _fields_at(schema, first["loc"][:-1])
            raise InputError(
                f"{where}: unknown key `{key}`{nearest(str(first['loc'][-1]), names)}"
            ) from None
        message = _shortened(first["msg"].removeprefix("Value error, "))
        if not key:
            raise InputError(f"{where}: {message}") from None
        wrong = first["input"]
        for own in _own_key(first):
            wrong = wrong[own]
        given = "" if first["type"] == "missing" else f", got {_shown(wrong)}"
        if location[0] in options:
            option = str(location[0]).replace("_", "-")
            raise InputError(f"--{option}: {message}{given}") from None
        raise InputError(f"{where}: `{key}`: {message}{given}") from None


def _own_key(error: ErrorDetails) -> tuple[str, ...]:
    """The key of an odd value: pydantic places it at the section that holds it."""
    return (error["ctx"]["key"],) if error["type"] == _ODD and "ctx" in error else ()


def _shortened(text: str) -> str:
    """A message that may quote a whole value, its beginning and its end."""
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"


def _shown(value: Any) -> str:
    """A wrong value, short: a number of 5,000 digits has no text in Python."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    return ascii(str(value)[:80]) if _is_broken(str(value)) else repr(str(value)[:80])


def _fields_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the (nested) schema that a validation location points into."""
    fields = schema.model_fields
    for part in location:
        inner = fields[part].annotation if part in fields else None
        for candidate in [inner, *getattr(inner, "__args__", ())]:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                fields = candidate.model_fields
                break
    return list(fields)


def nearest(word: str, known: list[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or else all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else f"; known here: {', '.join(known)}"


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a YAML file. InputError when it is not one."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as problem:
        raise InputError(f"{path}: not UTF-8 text (byte {problem.start})") from None
    except NotAProfile as problem:
        raise InputError(f"{path}: {problem}") from None
