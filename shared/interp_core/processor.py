"""Which instructions the numerical libraries use: the same ones, and so the same bytes, on every
x86-64 with AVX2.

PyTorch, MKL, oneDNN, OpenBLAS, NumPy and Numba each look at the processor and choose kernels for
it; sums are then taken in another order, and a training amplifies that. Here they are told to
choose as on a processor with AVX2 and nothing newer. They read their environment while they are
loaded, so a command calls `settle` before it imports them.

MKL also asks who made the processor: it obeys MKL_CBWR only on Intel's. `settle` answers that
question for it. INDUCTION_LAB_CPU=native leaves every choice to the libraries. `python -m
interp_core.processor PROGRAM ...` runs any other program so. Imports nothing heavy.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Literal

SWITCH = "INDUCTION_LAB_CPU"
PINNED = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "MKL_CBWR": "AVX2",  # MKL: products, decompositions, elementwise functions of large tensors
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # oneDNN: convolutions, GELU
    "OPENBLAS_CORETYPE": "Haswell",  # products and decompositions of NumPy and SciPy
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # NumPy's own loops
    "NUMBA_CPU_NAME": "haswell",  # Mamba's scan; Numba keeps what it compiles under this name
}
_MKL_AVX2 = 10  # MKL_CBWR_AVX2 of MKL's header
_LOADED_BY = ("torch", "numpy", "numba")  # whoever of them is loaded has read its environment

Instructions = Literal["avx2", "native"]


def settle() -> str | None:
    """Choose the instructions for this process and those it starts.

    Call it before torch, NumPy or Numba are loaded.

    Returns None, or one line that says why numbers will differ in the last digits from those of
    other machines.
    """
    if _native():
        return None

    if (reason := _unfit()) is not None:
        return f"{reason}: numbers will differ in the last digits from the committed ones"

    loaded = [name for name in _LOADED_BY if name in sys.modules]
    if loaded and instructions() == "native":
        return (
            f"{loaded[0]} was loaded before its instructions were chosen: numbers may differ in "
            "the last digits"
        )

    os.environ.update(PINNED)

    if "torch" in sys.modules:
        _answer_mkl()
    elif not any(isinstance(finder, _AfterTorch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTorch())

    return None


def instructions() -> Instructions:
    """What this process computes with: "avx2" on every machine alike, or "native", this processor's
    own choice.
    """
    pinned = all(os.environ.get(name) == value for name, value in PINNED.items())
    return "avx2" if pinned and not _native() and _unfit() is None else "native"


def _native() -> bool:
    return os.environ.get(SWITCH) == "native"


def _unfit() -> str | None:
    """Why this machine cannot give the committed bytes, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"{platform.system()} on {platform.machine()} is not Linux on x86-64"

    flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    missing = [flag for flag in ("avx2", "fma", "f16c") if flag not in flags]
    return f"this processor lacks {missing[0].upper()}" if missing else None


class _AfterTorch(MetaPathFinder):
    """Answers MKL's question as soon as PyTorch, which contains it, is loaded: before its first
    product.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch":
            return None

        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)

        if spec is not None and spec.loader is not None:
            spec.loader = _Answering(spec.loader)

        return spec


class _Answering(Loader):
    """PyTorch's own loader, and the answer when it is done."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module must look as if nobody had stood in between: pickling and inspection read its
        # loader.
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _answer_mkl()


def _answer_mkl() -> None:
    """Let MKL take its AVX2 kernels on every maker's processor.

    `mkl_serv_intel_cpu_true` compares the maker's name with "GenuineIntel" once and keeps the
    answer in a variable. Its first instructions read that variable, so they say where it is; where
    they are not the known ones, nothing is written. Says so when MKL does not follow.
    """
    library = Path(sys.modules["torch"].__path__[0]) / "lib" / "libtorch_cpu.so"
    torch_cpu = ctypes.CDLL(str(library))

    try:
        asks = ctypes.cast(torch_cpu.mkl_serv_intel_cpu_true, ctypes.c_void_p).value
        branch = torch_cpu.mkl_serv_cbwr_get
    except AttributeError:
        _say(
            "this PyTorch was built without MKL: numbers will differ in the last digits from the "
            "committed ones"
        )
        return

    assert asks is not None
    code = ctypes.string_at(asks, 11)

    # mov eax, [rip + distance]; test eax, eax; js; ret
    if code[:2] == b"\x8b\x05" and code[6:] == b"\x85\xc0\x78\x01\xc3":
        distance = int.from_bytes(code[2:6], "little", signed=True)
        ctypes.c_int32.from_address(asks + 6 + distance).value = 1

    if branch(1) != _MKL_AVX2:
        _say(
            "MKL chooses its own kernels here: numbers will differ in the last digits from the "
            "committed ones"
        )


def _say(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if (differs := settle()) is not None:
        _say(differs)

    os.execvp(sys.argv[1], sys.argv[1:])
