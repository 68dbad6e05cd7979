"""What a command of ours runs and reads: its function in a study's workflow, or in its room.

From that follow the files that a stage depends on, its parameters, and the options of a command.
"""

import ast
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from interp_core.errors import InputError
from interp_core.files.params import read_yaml
from interp_core.pipeline.import_closure import Piece, Reached, Sources, reached
from interp_core.pipeline.overlays import composed, overlays

# Parameters that no stage depends on, each with the reason that it changes no byte of a result.
PARAMETERS_WITHOUT_EFFECT = {
    "processes": "how many trainings run at once, each in a process of its own",
}

# What every command runs before its own code: it decides the last digits of all numbers.
ALWAYS = {"interp_core.processor"}

# A command's catalogue of models, read from the section of the same kind: (attribute, section).
CATALOGUE = ("known", "models")

# The class that hands a study its settings: what it reads of them, the study reads.
CALL = "interp_core.console.call"


@dataclass(frozen=True)
class Project:
    """A checkout: its packages and the programs they install."""

    root: Path
    sources: Sources
    scripts: Mapping[str, str]  # module of each program

    @classmethod
    def of(cls, root: Path) -> "Project":
        """As pyproject.toml describes it."""
        described = tomllib.loads((root / "pyproject.toml").read_text())
        folders = described["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        scripts = described["project"]["scripts"]

        return cls(
            root,
            Sources({Path(folder).name: root / folder for folder in folders}),
            {program: place.partition(":")[0] for program, place in scripts.items()},
        )

    @cached_property
    def profiles(self) -> dict[str, str]:
        """The text of every profile that an overlay makes, by name."""
        folder = self.root / "profiles"
        return {name: composed(folder, file) for name, file in overlays(folder).items()}

    @cached_property
    def contents(self) -> list[dict[str, Any]]:
        """What all profiles hold."""
        kept = sorted((self.root / "profiles").glob("*.yaml"))
        plain = [read_yaml(file) for file in kept if file.stem not in self.profiles]
        made = [yaml.safe_load(text) for text in self.profiles.values()]
        return [*plain, *made]


@dataclass(frozen=True)
class Command:
    """What a stage types: a function of a study's workflow or of the room of its name, or the
    core's command line.
    """

    project: Project
    module: str
    function: str

    @classmethod
    def of(cls, project: Project, cmd: str) -> "Command":
        """InputError for a command that is none of ours."""
        program, name, *_ = [*cmd.split(), ""]
        if program not in project.scripts:
            raise InputError(
                f"dvc.yaml: `{cmd}`: {program} is no program of pyproject.toml; "
                f"known here: {', '.join(project.scripts)}"
            )

        entry = project.scripts[program]
        function = name.replace("-", "_")
        package = entry.partition(".")[0]
        workflow, room = f"{package}.workflow", f"{package}.{function}"
        study = project.sources.file_of(workflow) is not None
        places = (
            [module for module in (workflow, room) if project.sources.file_of(module)]
            if study
            else [entry]
        )

        for module in places:
            known = [piece.function for piece in project.sources.pieces(module) if not piece.owner]
            if function in known:
                return cls(project, module, function)

        raise InputError(f"dvc.yaml: `{cmd}`: {places[0]} has no function {function}")

    @property
    def package(self) -> str:
        """The study, or the core."""
        return self.module.partition(".")[0]

    @cached_property
    def reached(self) -> Reached:
        """All that the command runs."""
        return reached(self.project.sources, self.module, self.function)

    @cached_property
    def files(self) -> list[str]:
        """Files of ours that the command runs, the command line left out: options in, one call."""
        modules = self.reached.modules - set(self.project.scripts.values()) | ALWAYS
        found = {self.project.sources.file_of(module) for module in modules}
        return sorted(str(file.relative_to(self.project.root)) for file in found if file)

    @cached_property
    def params(self) -> list[str]:
        """Keys of a profile that the command reads: `section.key`, or a section as a whole."""
        read = []

        attribute, section = CATALOGUE
        if any(attribute in piece.attributes for piece in self._study):
            read.append(section)

        for section, schema in self._sections():
            read += self._keys(section, schema)
        return read

    def read(self, schema: str) -> set[str]:
        """The fields of a schema that the command reads."""
        fields = _fields(self.project.sources, self.reached.modules, schema)
        pieces = self._reading
        return {
            name for one in pieces for name in _reads(one, fields, schema, self.project.sources)
        }

    def _keys(self, section: str, schema: str) -> list[str]:
        """The keys of a section that are read, in the schema's order."""
        fields = _fields(self.project.sources, self.reached.modules, schema)
        read = self.read(schema)

        whole = bool(fields) and read >= set(fields)  # no fields: the schema is not even imported
        read -= set(PARAMETERS_WITHOUT_EFFECT)
        keys = [f"{section}.{name}" for name in fields if name in read]

        # A key that some profile may leave out has no place of its own in DVC.
        kept = all(name in content[section] for content in self.project.contents for name in read)
        dropped = set(PARAMETERS_WITHOUT_EFFECT) & set(fields)
        return keys if kept and not (whole and not dropped) else [section]

    def _sections(self) -> Iterator[tuple[str, str]]:
        """Sections that the command reads and their schemas, from the calls of read_section."""
        own = [piece for piece in self.reached.pieces if piece.module == self.module]
        of_study = schemas_of(self.project.sources, f"{self.package}.study")
        yield from dict.fromkeys([*_read_sections(own), *of_study])

    @property
    def _study(self) -> list[Piece]:
        """The study's own code that runs."""
        return [
            piece for piece in self.reached.pieces if piece.module.partition(".")[0] == self.package
        ]

    @property
    def _reading(self) -> list[Piece]:
        """The code that reads settings: the study's own, and what hands it them."""
        return self._study + [piece for piece in self.reached.pieces if piece.module == CALL]


def schemas_of(sources: Sources, module: str) -> list[tuple[str, str]]:
    """Sections that a module reads, and their schemas; nothing for a module that is not there."""
    return _read_sections(sources.pieces(module)) if sources.file_of(module) else []


def _read_sections(pieces: Iterable[Piece]) -> list[tuple[str, str]]:
    """Sections and schemas, from the calls of read_section."""
    calls = [node for piece in pieces for called, node in piece.calls if called == "read_section"]
    return [(ast.literal_eval(call.args[0]), ast.unparse(call.args[1])) for call in calls]


def _reads(piece: Piece, fields: list[str], schema: str, sources: Sources) -> set[str]:
    """Fields of a section that a piece of code reads."""
    found = {
        name
        for holder, name in piece.reads
        if holder.endswith("params") or (holder == "self" and piece.owner == schema)
    }
    found &= set(fields)

    for called, call in piece.calls:
        if called.endswith("params.model_dump"):
            found |= set(fields) - _excluded(call, piece.module, sources)
    return found


def _excluded(call: ast.Call, module: str, sources: Sources) -> set[str]:
    """The words under `exclude=` of a model_dump, those of the module's constants among them."""
    words, waiting = set[str](), [word.value for word in call.keywords if word.arg == "exclude"]
    constants = {
        ast.unparse(node.targets[0]): node.value
        for piece in sources.pieces(module)
        if piece.function is None
        for node in piece.nodes
        if isinstance(node, ast.Assign)
    }

    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Constant):
                words.add(str(node.value))
            elif isinstance(node, ast.Name) and node.id in constants:
                waiting.append(constants[node.id])
    return words


def _fields(sources: Sources, modules: Iterable[str], schema: str) -> list[str]:
    """Field names of a schema, those of its bases first."""
    classes = {
        node.name: node
        for module in sorted(modules)
        for node in sources.tree(module).body
        if isinstance(node, ast.ClassDef)
    }

    def fields_of(name: str) -> list[str]:
        if name not in classes:
            return []
        bases = [field for base in classes[name].bases for field in fields_of(ast.unparse(base))]
        own = [part for part in classes[name].body if isinstance(part, ast.AnnAssign)]
        return [*bases, *(ast.unparse(part.target) for part in own)]

    return fields_of(schema)
