"""Edits of a profile: by a hand that slipped, and by one that wants to know what happens."""

import copy
from collections.abc import Callable
from pathlib import Path
from random import Random

import yaml

from cursive_circuits.params import CursiveCircuits
from eigen_phase.params import EigenPhase
from interp_core.errors import InputError
from interp_core.files.params import Params, read_section
from interp_core.models.spec import catalogue
from interp_core.stimuli.corpus import CorpusParams
from interp_core.training.mamba_models import MambaModels
from interp_core.training.reference_models import ReferenceModels
from mamba_induction.params import MambaInduction
from mamba_neurons.params import MambaNeurons
from pythia_topology.params import PythiaTopology
from torture import damage

SECTIONS: dict[str, type[Params]] = {
    "corpus": CorpusParams,
    "reference_models": ReferenceModels,
    "mamba_models": MambaModels,
    "pythia_topology": PythiaTopology,
    "eigen_phase": EigenPhase,
    "mamba_induction": MambaInduction,
    "mamba_neurons": MambaNeurons,
    "cursive_circuits": CursiveCircuits,
}

# What stands where a value was.
ODD = (
    *("", "null", "~", "true", "-1", "0", "0.0", "1e400", ".inf", "-.inf", ".nan", "1e-320"),
    *("9" * 400, "-" + "9" * 400, "9" * 5000, "9223372036854775808", "0x" + "f" * 40, "1_000"),
    *("[]", "{}", "[[]]", "[1, 2, 3]", "{a: 1}", "2026-13-45", "2026-02-30 25:61:00", "12:30:45"),
    *('"\\ud800"', '"a\\0b"', "../../thesis", "!!python/object:os.system ls", "!!binary x", "*no"),
    *("[" * 2000, "&a [*a]", '"' + "x" * 200_000 + '"', "0.5", "1.5", "-0.5", "1", "2", "word"),
    *("!!set {a, b}", "!!timestamp x", "!!float x", "!!int 1.5", "? a", "|", "- - -", "%", "@"),
)
# What PyYAML itself says of what an earlier edit left.
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError, AttributeError, TypeError)
_LAUGHS = "\n".join(
    ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
)


def edited(text: str, rng: Random) -> bytes:
    """The profile after one edit or two."""
    chosen = rng.choices(EDITS, k=rng.choice((1, 1, 1, 2)))
    # Those that read the profile come first, while it can be read.
    chosen.sort(key=lambda edit: edit not in (_number, _structure))
    content = text.encode()
    for edit in chosen:
        content = edit(content, rng)
    return content


def read(path: Path) -> str:
    """Every section, as commands read them before they do anything."""
    refused = None
    for name, schema in SECTIONS.items():
        try:
            read_section(name, schema, str(path))
        except InputError as problem:
            refused = problem
    catalogue(str(path))
    if refused is not None:
        raise refused
    return "other"


def _value(content: bytes, rng: Random) -> bytes:
    """Another value behind a key."""
    lines = content.decode(errors="surrogateescape").split("\n")
    places = [at for at, line in enumerate(lines) if ": " in line and "#" not in line]
    if not places:
        return content
    at = rng.choice(places)
    key, _, _ = lines[at].partition(": ")
    lines[at] = f"{key}: {rng.choice(ODD)}"
    return "\n".join(lines).encode(errors="surrogateescape")


def _number(content: bytes, rng: Random) -> bytes:
    """A number, wherever it stands, as another one."""
    try:
        profile = yaml.load(content, yaml.CSafeLoader)
    except _UNREADABLE:
        return content
    places = [
        (holder, key)
        for holder, key in damage.places_of(profile)
        if isinstance(holder[key], int | float)
    ]
    if not places:
        return content
    holder, key = rng.choice(places)
    found = holder[key]
    holder[key] = rng.choice(
        (-found, 0, found * 10**6, 10**30, 1.5, -1, 1, 2**63, 1e308, float("nan"), float("inf"))
    )
    return _dumped(profile)


def _structure(content: bytes, rng: Random) -> bytes:
    """A key gone, renamed, moved, or holding something of another kind."""
    try:
        profile = yaml.load(content, yaml.CSafeLoader)
    except _UNREADABLE:
        return content
    places = damage.places_of(profile)
    if not places:
        return content
    holder, key = rng.choice(places)
    other, other_key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del holder[key]
        case 1:
            holder[key] = copy.deepcopy(other[other_key])
        case 2 if isinstance(holder, dict):
            holder[f"{key}s"] = holder.pop(key)
        case 3:
            holder[key] = [holder[key]]
        case _:
            holder[key] = rng.choice((None, [], {}, "", "\ud800", "x" * 10**6, -(10**400)))
    return _dumped(profile)


def _dumped(profile: object) -> bytes:
    """As YAML; half a character, which libyaml cannot write, as an escape."""
    try:
        return yaml.dump(profile, Dumper=yaml.CSafeDumper).encode()
    except UnicodeEncodeError:
        return yaml.dump(profile, Dumper=yaml.SafeDumper).encode()


def _line(content: bytes, rng: Random) -> bytes:
    """A line twice, gone, moved or indented."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines.insert(at, lines[at])
        case 1:
            del lines[at]
        case 2:
            lines.insert(rng.randrange(len(lines)), lines.pop(at))
        case _:
            lines[at] = b" " * rng.choice((1, 2, 7)) + lines[at]
    return b"\n".join(lines)


def _bytes(content: bytes, rng: Random) -> bytes:
    """Bits flipped, a piece cut out, another encoding."""
    match rng.randrange(6):
        case 0:
            return content[: rng.randrange(len(content) + 1)]
        case 1:
            return content.decode(errors="replace").encode("utf-16")
        case 2:
            return b"\xff\xfe\x00" + content
        case 3:
            at = rng.randrange(len(content) + 1)
            return content[:at] + rng.randbytes(4) + content[at:]
        case _:
            changed = bytearray(content)
            if changed:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)


def _bomb(content: bytes, rng: Random) -> bytes:
    """Aliases that stand for billions of values; brackets without an end; a profile twice."""
    name = rng.choice(list(SECTIONS))
    return rng.choice(
        (
            content + f"\n{_LAUGHS}\n".encode(),
            f"{_LAUGHS}\n{name}: *a11\n".encode(),
            f"{name}: {'[' * 5000}".encode(),
            f"{name}: {'{a: ' * 3000}".encode(),
            content + content,
            f"{name}: &a {{seed: *a}}\n".encode(),
            b"\t" + content,
            b"%YAML 9.9\n---\n" + content,
            content + b"\n---\na: 1\n",
        )
    )


EDITS: tuple[Callable[[bytes, Random], bytes], ...] = (
    *(_value, _value, _value, _number, _number, _structure, _structure, _line, _bytes, _bomb),
)
