"""Which of our files a command runs, read from the source: for DVC's stages and for fingerprints.

What runs when a module is imported is followed always. What a function or a method does, its late
imports too, is followed where code that is reached names it.
"""

import ast
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

# Modules that no stage and no fingerprint depends on, each with the reason that it changes no byte
# of a result. Whoever adds one says why.
WITHOUT_EFFECT = {
    "interp_core.models.lens": "no committed model runs through it: all have a native path",
    "interp_core.console.doctor": "says what is wrong with an installation",
    "interp_core.console.doctor_network": "asks a hub and a remote whether they answer",
    "interp_core.console.first_line": "a line on standard error before slow imports",
    "interp_core.console.options": "options, and errors in one line",
    "interp_core.console.last_commit": "which of a stage's outputs are those of the last commit",
    "interp_core.console.natively": "notes that a stage ran natively, when it has ended",
    "interp_core.console.own_code": "which checkout's code a stage runs: its own",
    "interp_core.console.remote": "brings files that dvc.lock names, each checked by its hash",
    "interp_core.pipeline.import_closure": "says what reruns, and what is resumed",
    "interp_core.console.dvc_files": "what is wrong with an installation",
    "interp_core.console.holding": "who may write into a folder now, never what is written",
    "interp_core.files.finished": "puts back what the same code has made of the same",
    "interp_core.files.locks": "who may write into a folder now, never what is written",
    "interp_core.files.unfinished": "where unfinished work lies, never what is in it",
    "interp_core.files.way_out": "what to do about a file that is missing",
    "interp_core.console.made_from": "marks records of experiments; a stage's files have no mark",
    "interp_core.console.measured": "puts back what the same code has measured of the same",
    "interp_core.progress": "bars on standard error; every item is passed on, in order",
    "interp_core.training.account": "where curves for W&B go",
    "interp_core.training.cluster": "on which machine a training runs; each checks what it is",
    "interp_core.training.curves": "names of curves for W&B",
    "interp_core.training.journal": "points of curves for W&B, for when a training goes on",
    "interp_core.training.live_run": "curves for W&B, which nothing reads back",
    "interp_core.training.shares": "which process measures what; a study puts it together",
    "interp_core.training.tracking": "runs at W&B, which nothing reads back",
    "interp_core.training.workers": "in which process a training runs; each sets threads and seeds",
}

# Decorators that leave a function to be called by its name.
_TRANSPARENT = {"abstractmethod", "cached_property", "classmethod", "contextmanager", "property"}
_TRANSPARENT |= {"staticmethod", "torch.no_grad()"}
_CALLED_BY_LIBRARIES = {"forward", "backward", "setup_context"}
_PLAIN_BASES = {"ABC", "Generic", "Protocol"}
_CHECKS = ("model_validator", "field_validator")


@dataclass(frozen=True)
class Piece:
    """Code of one module that runs together."""

    module: str
    owner: str | None  # the class whose method it is
    function: str | None  # None: runs when the module is imported
    by_name: bool  # runs only where code that is reached names it
    nodes: tuple[ast.AST, ...]
    inside: tuple[ast.AST, ...]  # those nodes and all below them
    attributes: frozenset[str]  # that it names
    functions: frozenset[tuple[str, str]]  # (module, name) that it names, of its own module too
    modules: frozenset[str]  # of ours that it imports
    whole_modules: frozenset[str]  # those of them that it imports as modules

    @property
    def is_check(self) -> bool:
        """Whether it only says what is wrong with parameters: what it names is not run for them."""
        return any(
            isinstance(node, ast.FunctionDef)
            and any(ast.unparse(one).startswith(_CHECKS) for one in node.decorator_list)
            for node in self.nodes
        )

    @cached_property
    def reads(self) -> frozenset[tuple[str, str]]:
        """What it reads of what: `("params", "period")` for `params.period`."""
        found = (node for node in self.inside if isinstance(node, ast.Attribute))
        return frozenset((ast.unparse(node.value), node.attr) for node in found)

    @cached_property
    def calls(self) -> tuple[tuple[str, ast.Call], ...]:
        """Its calls, each with what is called."""
        found = (node for node in self.inside if isinstance(node, ast.Call))
        return tuple((ast.unparse(node.func), node) for node in found)


@dataclass(frozen=True)
class Sources:
    """Our packages: everything else is a library."""

    packages: Mapping[str, Path]  # folder of each, by name
    _files: dict[str, Path | None] = field(default_factory=dict, repr=False)
    _trees: dict[str, ast.Module] = field(default_factory=dict, repr=False)
    _pieces: dict[str, list[Piece]] = field(default_factory=dict, repr=False)

    @classmethod
    def installed(cls, *packages: str) -> "Sources":
        """Packages where Python finds them, in a checkout or in a wheel."""
        found = {}

        for package in packages:
            spec = importlib.util.find_spec(package)
            assert spec is not None
            assert spec.submodule_search_locations is not None
            found[package] = Path(spec.submodule_search_locations[0])

        return cls(found)

    def file_of(self, module: str) -> Path | None:
        """The file of one of our modules; None for libraries, and for names inside modules."""
        package, *rest = module.split(".")
        if package not in self.packages:
            return None

        if module not in self._files:
            base = self.packages[package].joinpath(*rest)
            candidates = (base / "__init__.py", base.with_name(f"{base.name}.py") if rest else base)
            self._files[module] = next((file for file in candidates if file.is_file()), None)
        return self._files[module]

    def tree(self, module: str) -> ast.Module:
        """A module of ours, parsed."""
        if module not in self._trees:
            file = self.file_of(module)
            assert file is not None
            self._trees[module] = ast.parse(file.read_text())
        return self._trees[module]

    def pieces(self, module: str) -> list[Piece]:
        """A module of ours in pieces."""
        if module not in self._pieces:
            self._pieces[module] = list(_pieces(module, self.tree(module), self))
        return self._pieces[module]


@dataclass(frozen=True)
class Reached:
    """What a command runs."""

    modules: frozenset[str]
    pieces: tuple[Piece, ...]


def reached(sources: Sources, module: str, function: str | None = None) -> Reached:
    """What runs when a function of a module is called; without one, when anything in it is."""
    modules = _with_packages({module})
    live: dict[int, Piece] = {}
    named = _Named()

    if function is not None:
        named.functions.add((module, function))

    while True:
        found = [
            piece
            for one in sorted(modules)
            for piece in sources.pieces(one)
            if id(piece) not in live
            and (named.runs(piece, start=module) or (function is None and piece.module == module))
        ]
        if not found:
            return Reached(frozenset(modules), tuple(live.values()))

        for piece in found:
            live[id(piece)] = piece
            named.note(piece)
            modules |= _with_packages(piece.modules) - WITHOUT_EFFECT.keys()


def _with_packages(modules: Iterable[str]) -> set[str]:
    """Modules and the packages they are in: Python runs those first."""
    found = set()

    for module in modules:
        parts = module.split(".")
        found |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}

    return found


@cache
def code_of(module: str) -> tuple[Path, ...]:
    """Files whose change can change what a module computes: its own, and what it imports."""
    sources = Sources.installed(*{"interp_core", module.partition(".")[0]})
    found = sorted(reached(sources, module).modules)
    return tuple(file for name in found if (file := sources.file_of(name)) is not None)


def imports(node: ast.AST, sources: Sources) -> Iterator[tuple[str, str | None]]:
    """Modules of ours that code imports, each with the name taken from it; types alone left out."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return

    if isinstance(node, ast.Import):
        yield from ((alias.name, None) for alias in node.names if sources.file_of(alias.name))

    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            if sources.file_of(inner):
                yield inner, None
            if sources.file_of(node.module):
                yield node.module, alias.name

    # Statements stand in statements alone: no expression is looked into.
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from imports(child, sources)


@dataclass
class _Named:
    """What the code reached so far names."""

    functions: set[tuple[str, str]] = field(default_factory=set)  # (module, function)
    whole_modules: set[str] = field(default_factory=set)  # imported as modules
    attributes: set[str] = field(default_factory=set)

    def note(self, piece: Piece) -> None:
        """Take in the names of one more piece."""
        self.functions |= piece.functions
        self.whole_modules |= piece.whole_modules
        self.attributes |= piece.attributes

    def runs(self, piece: Piece, *, start: str) -> bool:
        """Whether code that is reached runs a piece."""
        if piece.function is None:
            return True

        # The commands of a command line are decorated, and are called from outside one by one.
        if not piece.by_name and not (piece.module == start and piece.owner is None):
            return not piece.is_check

        if piece.owner is not None:
            return piece.function in self.attributes

        through_module = piece.module in self.whole_modules and piece.function in self.attributes
        return through_module or (piece.module, piece.function) in self.functions


def _pieces(module: str, tree: ast.Module, sources: Sources) -> Iterator[Piece]:
    """Functions, methods, and what remains: what an import runs."""
    ours = {alias for node in tree.body for alias in _names_of_ours(node, sources)}
    at_import: list[ast.AST] = []

    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield _piece(sources, module, (node,), by_name=_is_transparent(node))
        elif isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            at_import += [*node.bases, *node.decorator_list]
            at_import += [part for part in node.body if part not in methods]

            # A library calls the methods of its own classes by names that are not seen here.
            closed = all(
                ast.unparse(base).partition("[")[0] in _PLAIN_BASES | ours for base in node.bases
            )
            ours |= {node.name} if closed else set()

            for method in methods:
                called = method.name.startswith("__") or method.name in _CALLED_BY_LIBRARIES
                by_name = closed and not called and _is_transparent(method)
                yield _piece(sources, module, (method,), owner=node.name, by_name=by_name)
        else:
            at_import.append(node)

    yield _piece(sources, module, tuple(at_import))


def _piece(
    sources: Sources,
    module: str,
    nodes: tuple[ast.AST, ...],
    *,
    owner: str | None = None,
    by_name: bool = False,
) -> Piece:
    """A piece with what it names."""
    first = nodes[0] if len(nodes) == 1 else None
    function = first if isinstance(first, ast.FunctionDef) else None

    inside = tuple(found for node in nodes for found in ast.walk(node))
    arguments = {found.arg for found in inside if isinstance(found, ast.arg)}
    names = {found.id for found in inside if isinstance(found, ast.Name)} - arguments
    taken = [pair for node in nodes for pair in imports(node, sources)]

    return Piece(
        module,
        owner,
        function.name if function else None,
        by_name,
        nodes,
        inside,
        attributes=frozenset(found.attr for found in inside if isinstance(found, ast.Attribute)),
        functions=frozenset((module, name) for name in names)
        | {(one, name) for one, name in taken if name is not None},
        modules=frozenset(one for one, _ in taken),
        whole_modules=frozenset(one for one, name in taken if name is None),
    )


def _names_of_ours(node: ast.AST, sources: Sources) -> Sequence[str]:
    """Names that an import statement takes from our modules."""
    if isinstance(node, ast.ImportFrom) and node.module and sources.file_of(node.module):
        return [alias.asname or alias.name for alias in node.names]
    return []


def _is_transparent(function: ast.FunctionDef) -> bool:
    return all(ast.unparse(decorator) in _TRANSPARENT for decorator in function.decorator_list)
