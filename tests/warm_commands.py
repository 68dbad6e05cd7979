"""The project's commands without their seconds of imports, for tests that run all of them.

A server loads the libraries once and forks for every command. Programs of the commands' names,
first on PATH, hand it what they were called with. The project's own code is imported in the fork,
by the command, as always.
"""

import atexit
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp_core.processor import settle

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    "numpy",
    "scipy.optimize",
    "scipy.stats",
    "matplotlib.pyplot",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.mamba.modeling_mamba",
    "numba",
    "pydantic.main",
    "click",
    "einops",
    "jaxtyping",
    "PIL.PngImagePlugin",
)

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({place!r})
    call = [os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]
    socket.send_fds(server, [b"call"], [0, 1, 2])
    server.sendall(json.dumps(call).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16) or b"70"))
"""


@contextmanager
def warm_commands(folder: Path, environment: dict[str, str], cwd: Path) -> Iterator[dict[str, str]]:
    """The environment in which every command of the project goes to a server started in `cwd`."""
    folder.mkdir()
    place = folder / "socket"

    for name in commands():
        program = folder / name
        program.write_text(CLIENT.format(python=sys.executable, place=str(place)))
        program.chmod(0o755)

    started = [sys.executable, __file__, str(place)]
    with subprocess.Popen(started, cwd=cwd, env=environment, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield environment | {"PATH": f"{folder}{os.pathsep}{environment['PATH']}"}
        finally:
            server.terminate()


def commands() -> dict[str, str]:
    """Where each of the project's commands begins: module and function."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def serve(place: str) -> None:
    """Load the libraries as a command would, then run what comes, each call in a fork."""
    settle()
    for library in LIBRARIES:
        importlib.import_module(library)
    # A fork that looks for garbage would copy every page of theirs.
    gc.freeze()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen()
        print("ready", flush=True)

        while True:
            caller, _ = listening.accept()
            with caller:
                _answer(caller)


def _answer(caller: socket.socket) -> None:
    """One call; the stages of a pipeline come one after the other."""
    _, descriptors, _, _ = socket.recv_fds(caller, 4, 3)
    told = b"".join(iter(lambda: caller.recv(1 << 16), b""))

    if (child := os.fork()) == 0:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        _run(*json.loads(told))

    for descriptor in descriptors:
        os.close(descriptor)

    _, status = os.waitpid(child, 0)
    caller.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _run(name: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """As the installed program does it: its function called, then an exit of the whole process.

    That exit without what tears libraries down: it takes longer than most stages.
    """
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = [name, *arguments]

    # What Python runs first in every process sees this one's environment too.
    if "sitecustomize" in sys.modules:
        importlib.reload(sys.modules["sitecustomize"])

    module, _, function = commands()[name].partition(":")
    try:
        sys.exit(getattr(importlib.import_module(module), function)())
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        status = end.code or 0

    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
