"""Options of a study's commands, from the fields of its settings: name, type and comment are there.

A command takes what the workflow functions that it calls read, and the settings that it calls
`parts`. Read from the source and written beside the study: `--help` has no time to import it.
"""

import ast
import io
import json
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from interp_core.errors import InputError
from interp_core.files import OPTIONS_FILE
from interp_core.pipeline.commands import Command, Project, schemas_of
from interp_core.pipeline.import_closure import Sources, imports

# What a field's type is to a command line; PositiveInt and its like say more, to pydantic.
_SCALARS = {"int": "integer", "float": "float", "str": "text", "bool": "flag", "Path": "path"}
_SCALARS |= {"FileName": "text"}
_BOUNDS = ("Positive", "NonNegative")


def texts(project: Project) -> dict[Path, str]:
    """The file of options of every study whose commands take settings, with its text."""
    found = {}

    for module in dict.fromkeys(project.scripts.values()):
        cli = project.sources.file_of(module)
        study = StudyOptions(project, module.partition(".")[0])

        if cli is not None and study.commands:
            found[cli.parent / OPTIONS_FILE] = _a_line_each(study.found)

    return found


@dataclass(frozen=True)
class StudyOptions:
    """The options of one study."""

    project: Project
    package: str

    @property
    def found(self) -> dict[str, Any]:
        """Every setting that a command line can say, and those that each command reads."""
        commands = {name: self._command(node) for name, node in self.commands.items()}
        parts = dict.fromkeys(part for reads in commands.values() for part in reads)
        settings = {part: fields_of(self._sources, *self._schema_of(part)) for part in parts}

        section, schema = self._section
        return {"section": section, "schema": schema, "settings": settings, "commands": commands}

    @cached_property
    def commands(self) -> dict[str, ast.FunctionDef]:
        """The functions of the command line that take settings, by name."""
        functions = [node for node in self._cli.body if isinstance(node, ast.FunctionDef)]
        return {node.name: node for node in functions if list(_parts(node))}

    def _command(self, node: ast.FunctionDef) -> dict[str, list[str]]:
        """What a command reads, by the part of the section that it is in; "" is the section."""
        reads = {}

        for part in _parts(node):
            fields = fields_of(self._sources, *self._schema_of(part))
            # The fields of a part go together: code that has it may ask for any of them.
            read = set(fields) if part else self._read(node)
            reads[part] = [name for name in fields if name in read]

        return reads

    def _read(self, node: ast.FunctionDef) -> set[str]:
        """Fields of the section that the functions of a command read, and its call itself."""
        calls = [(f"{self.package}.workflow", name) for name in self._called(node)]
        calls.append((f"{self.package}.study", "prepare"))
        read = set[str]()

        for module, function in calls:
            read |= Command(self.project, module, function).read(self._section[1])
        return read

    def _called(self, node: ast.FunctionDef) -> list[str]:
        """Functions of the workflow that a command names, or a function of its module does."""
        own = {one.name: one for one in self._cli.body if isinstance(one, ast.FunctionDef)}
        waiting, seen, found = [node], set[str](), list[str]()

        while waiting:
            inside = list(ast.walk(waiting.pop()))
            arguments = {one.arg for one in inside if isinstance(one, ast.arg)}

            for one in inside:
                if isinstance(one, ast.Attribute) and ast.unparse(one.value) == "workflow":
                    found.append(one.attr)
                elif isinstance(one, ast.Name) and one.id in own.keys() - seen - arguments:
                    seen.add(one.id)
                    waiting.append(own[one.id])

        return list(dict.fromkeys(found))

    @property
    def _sources(self) -> Sources:
        return self.project.sources

    @cached_property
    def _cli(self) -> ast.Module:
        return self._sources.tree(f"{self.package}.cli")

    @cached_property
    def _section(self) -> tuple[str, str]:
        """The study's section and its schema."""
        return schemas_of(self._sources, f"{self.package}.study")[0]

    def _schema_of(self, part: str) -> tuple[str, str]:
        """Module and name of the schema of the section, or of a part of it."""
        module = f"{self.package}.params"
        if not part:
            return module, self._section[1]

        node = dict(_annotated(_class(self._sources, module, self._section[1])))[part]
        return module, ast.unparse(node.annotation)


def _a_line_each(content: Mapping[str, Any]) -> str:
    """JSON with a line for each setting and for each list of names."""

    def block(value: Any, indent: int) -> str:
        if not isinstance(value, dict) or "type" in value:
            return json.dumps(value, ensure_ascii=False)

        inner = " " * (indent + 1)
        lines = [f"{inner}{json.dumps(key)}: {block(v, indent + 1)}" for key, v in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"

    return block(content, 0) + "\n"


def fields_of(sources: Sources, module: str, schema: str) -> dict[str, dict[str, Any]]:
    """Name, type and help of the class's own fields that a command line can say, in order."""
    found = {}
    node = _class(sources, module, schema)
    comments = _comments(sources, module)

    for name, field in _annotated(node):
        kind = _kind(sources, module, field.annotation)
        if kind is not None:
            own = {"default": field.value.value} if isinstance(field.value, ast.Constant) else {}
            found[name] = kind | own | {"help": _sentence(comments, field)}

    return found


def _class(sources: Sources, module: str, name: str) -> ast.ClassDef:
    for node in sources.tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node

    raise InputError(f"{module} has no class {name}, whose fields would be options")


def _annotated(node: ast.ClassDef) -> Iterator[tuple[str, ast.AnnAssign]]:
    for part in node.body:
        if isinstance(part, ast.AnnAssign):
            yield ast.unparse(part.target), part


def _parts(node: ast.FunctionDef) -> Iterator[str]:
    """The parts of the section that a command takes: the words of `@_settings(...)`."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "_settings":
            yield from [ast.literal_eval(word) for word in decorator.args] or [""]


def _kind(sources: Sources, module: str, node: ast.expr) -> dict[str, Any] | None:
    """What a command line makes of a type; None where it cannot say such a value."""
    if isinstance(node, ast.BinOp):  # `int | None`: not giving it is None
        sides = [side for side in (node.left, node.right) if ast.unparse(side) != "None"]
        if any(ast.unparse(side) == "str" for side in sides):
            return {"type": "text"}  # a word that may also be a number: its schema reads it
        return _kind(sources, module, sides[0]) if len(sides) == 1 else None

    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value)
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]

        if outer == "Annotated":
            return _kind(sources, module, inner[0])
        if outer == "Literal":
            return {"type": "text", "choices": [ast.literal_eval(word) for word in inner]}
        if outer != "tuple":
            return None

        one = _kind(sources, module, inner[0])
        if one is None or one["type"] == "flag":
            return None
        is_open = ast.unparse(inner[-1]) == "..."
        return one | ({"several": True} if is_open else {"values": len(inner)})

    name = ast.unparse(node)
    for bound in _BOUNDS:
        name = name.removeprefix(bound)
    name = name.lower() if name in ("Int", "Float") else name

    if name in _SCALARS:
        return {"type": _SCALARS[name]}
    return _alias(sources, module, name)


def _alias(sources: Sources, module: str, name: str) -> dict[str, Any] | None:
    """A name for a type, in this module or in one of ours that it imports it from."""
    tree = sources.tree(module)

    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return _kind(sources, module, node.value)

    for node in tree.body:
        for origin, taken in imports(node, sources):
            if taken == name:
                return _alias(sources, origin, name)
    return None


def _comments(sources: Sources, module: str) -> Mapping[int, tuple[str, bool]]:
    """Comments by line: the words, and whether they have the line for themselves."""
    file = sources.file_of(module)
    assert file is not None
    found = {}

    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line[: token.start[1]].isspace()
            found[token.start[0]] = (token.string.lstrip("# "), alone or not token.start[1])

    return found


def _sentence(comments: Mapping[int, tuple[str, bool]], field: ast.AnnAssign) -> str:
    """The comment of a field: on its lines, or else on those right above it."""
    assert field.end_lineno is not None
    inside = range(field.lineno, field.end_lineno + 1)
    words = [comments[line][0] for line in inside if line in comments]

    if not words:
        line = field.lineno - 1
        while line in comments and comments[line][1]:
            words.insert(0, comments[line][0])
            line -= 1

    text = " ".join(words)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
