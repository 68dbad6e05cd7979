"""What is derived of dvc.yaml, of the profiles and of options, from what is declared once.

A stage declares desc, cmd, outs, metrics, plots and the data that it reads. From its command follow
the files of ours that it runs and the parameters that it reads: both are rewritten in place.
"""

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from interp_core.errors import InputError
from interp_core.files.artifacts import replacing
from interp_core.pipeline import options
from interp_core.pipeline.commands import Command, Project

WIDTH = 100  # of a line of parameters


def written(root: Path) -> dict[Path, str]:
    """Every file that `make stages` writes, with its text."""
    project = Project.of(root)
    texts = {root / "profiles" / f"{name}.yaml": text for name, text in project.profiles.items()}
    texts |= options.texts(project)

    return texts | {root / "dvc.yaml": dvc_yaml(project, (root / "dvc.yaml").read_text())}


def write(root: Path) -> list[Path]:
    """Write what differs; returns the files that did."""
    stale = {path: text for path, text in written(root).items() if not _holds(path, text)}

    for path, text in stale.items():
        with replacing(path) as part:
            part.write_text(text)
    return list(stale)


def check(root: Path) -> None:
    """InputError for a file that is not what `write` would write, naming it and what differs."""
    for path, text in written(root).items():
        if not _holds(path, text):
            found = path.read_text() if path.is_file() else ""
            raise InputError(
                f"{path.relative_to(root)} is not what is declared ({_difference(found, text)}): "
                "run `make stages` and commit what it writes"
            )


def dvc_yaml(project: Project, text: str) -> str:
    """dvc.yaml with the files and the parameters of every stage written anew."""
    stages = yaml.safe_load(text)["stages"]

    # A stage's lines: from its name to the next line that is not indented deeper, or a blank one.
    blocks = re.split(r"(?m)^(?=  \w[\w-]*:$)", text)
    return blocks[0] + "".join(_stage(project, block, stages) for block in blocks[1:])


def _stage(project: Project, block: str, stages: Mapping[str, Any]) -> str:
    name = block.partition(":")[0].strip()
    declared = stages[name]
    command = Command.of(project, declared["cmd"])

    # Python files are derived; what else a stage reads is declared.
    data = [dep for dep in declared.get("deps", []) if not dep.endswith(".py")]
    deps = "".join(f"      - {file}\n" for file in [*data, *command.files])

    # The keys of a stage with their lines; comments and blank lines stay where they are.
    head, *keys = re.split(r"(?m)^(?=    \w+:)", block)
    parts = {key.partition(":")[0].strip(): key for key in keys}
    trailing = re.search(r"\n*\Z", block)
    assert trailing is not None

    parts["deps"] = f"    deps:\n{deps}"
    parts["params"] = _params_lines(command.params)
    order = ["desc", "cmd", "params", "deps", *parts]
    body = "".join(parts[key].rstrip("\n") + "\n" for key in dict.fromkeys(order) if parts.get(key))
    return head + body.rstrip("\n") + trailing[0]


def _params_lines(keys: list[str]) -> str:
    """The parameters of a stage; nothing for a stage that reads files alone."""
    if not keys:
        return ""

    place = "      - profiles/${profile}.yaml:"
    one_line = f"{place} [{', '.join(keys)}]\n"
    if len(one_line) <= WIDTH:
        return f"    params:\n{one_line}"

    indented = " " * 10
    lines = textwrap.fill(
        f"[{', '.join(keys)}]",
        WIDTH,
        initial_indent=indented,
        subsequent_indent=f"{indented} ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"    params:\n{place}\n{lines}\n"


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def _difference(found: str, wanted: str) -> str:
    """The first line that one of two texts has and the other lacks."""
    have, want = found.splitlines(), wanted.splitlines()
    lacks = [line.strip(" -") for line in want if line not in have]
    extra = [line.strip(" -") for line in have if line not in want]

    for said, lines in (("lacks", lacks), ("has", extra)):
        if lines:
            return f"{said} `{lines[0]}`"

    # The same lines in other places: the first that stands elsewhere.
    pairs = zip([*have, ""], [*want, ""], strict=False)
    at, (_, line) = next((i, pair) for i, pair in enumerate(pairs, start=1) if pair[0] != pair[1])
    return f"line {at}: `{line.strip()}` is expected"
