"""Which of our files a stage's command runs: the import closure of its rooms, read from the source."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOMES = (ROOT / "shared", ROOT / "packages")
WORKFLOW_OF = {
    "induct": "pythia_topology.workflow",
    "eigen-phase": "eigen_phase.workflow",
    "mamba-neurons": "mamba_neurons.workflow",
    "mamba-induction": "mamba_induction.workflow",
    "cursive-circuits": "cursive_circuits.workflow",
}


def source_of(module: str) -> Path | None:
    """The file of one of our modules; None for libraries."""
    for home in HOMES:
        base = home / module.replace(".", "/")
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file
    return None


def imports(tree: ast.AST) -> Iterator[str]:
    """Our modules that a piece of code imports when it runs, wherever in it; imports for types alone are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if source_of(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from (name for name in (inner, node.module) if source_of(name))
        else:
            yield from imports(node)


@cache
def imports_of(file: Path) -> frozenset[str]:
    """The same of a whole file, read once."""
    return frozenset(imports(ast.parse(file.read_text())))


def closure(modules: set[str]) -> set[Path]:
    """Files of these modules and of everything of ours that they import."""
    seen: set[str] = set()
    waiting = set(modules)
    while waiting:
        module = waiting.pop()
        file = source_of(module)
        if module in seen or file is None:
            continue
        seen.add(module)
        package = module.rpartition(".")[0]
        waiting |= {*imports_of(file), *({package} if package else set())}
    return {file for module in seen if (file := source_of(module)) is not None}


def functions_reached(module: str, command: str) -> list[ast.FunctionDef]:
    """The function of a workflow module that a command calls, and those of its neighbours that it names, in turn."""
    file = source_of(module)
    assert file is not None
    tree = ast.parse(file.read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    name = command.split()[1].replace("-", "_")
    waiting, reached = {{"multisize": "crosssize"}.get(name, name)}, set[str]()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        arguments = {node.arg for node in ast.walk(functions[name]) if isinstance(node, ast.arg)}
        named = {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)} - arguments
        waiting |= (named & functions.keys()) - reached
    return [functions[name] for name in sorted(reached)]


def reached_from(module: str, command: str) -> set[Path]:
    """What a command runs of a workflow module: the module, what it imports at its top, and what the functions that the
    command reaches import inside."""
    file = source_of(module)
    assert file is not None
    top = ast.Module([node for node in ast.parse(file.read_text()).body if not isinstance(node, ast.FunctionDef)], [])
    inner = {found for function in functions_reached(module, command) for found in imports(function)}
    return closure({*imports(top), *inner}) | {file}


def files_of_command(command: str) -> set[Path]:
    """Files that a stage's command runs, the thin command line left out."""
    program, name = command.split()[:2]
    if (program, name) == ("induction-lab", "corpus"):
        return closure({"interp_core.corpus"})
    if (program, name) == ("induction-lab", "models"):
        return closure({"interp_core.reference_models"})
    if (program, name) == ("induction-lab", "mamba-models"):
        return closure({"interp_core.mamba_models"})
    if (program, name) == ("induction-lab", "answers"):
        return closure({"interp_core.answers"})
    if name in ("figures", "answers"):
        return closure({f"{WORKFLOW_OF[program].partition('.')[0]}.{name}"})
    return reached_from(WORKFLOW_OF[program], command)
