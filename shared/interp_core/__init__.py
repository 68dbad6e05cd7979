"""The core of Induction Lab: models, activations, stimuli, scores, circuits and statistics of all
studies.

What a user needs is one import away: `from interp_core import load_model, capture, Site`. The rest
lies in rooms, each with its subject in its first line.
"""

import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

# What a user may import from here, and the module it lies in. Nothing is loaded before it is asked
# for.
_FRONT = {
    "HookError": "models.hooks",
    "ModelSpec": "models.spec",
    "Site": "models.sites",
    "attention_entries": "mamba.hidden_attention",
    "capture": "models.hooks",
    "fast_scan": "mamba.selective_scan",
    "intervene": "models.hooks",
    "load_model": "loading",
    "mixer_calls": "mamba.hidden_attention",
    "repeated_tokens": "stimuli.prompts",
    "replace_by": "models.hooks",
    "score_heads": "measures.scores",
    "stream_attention": "mamba.hidden_attention",
    "subject_of": "loading",
    "zero": "models.hooks",
}

__all__ = list(_FRONT)  # pyright: ignore[reportUnsupportedDunderAll]

# Where modules lay before there were rooms: scripts and notebooks of users go on.
_BEFORE = {
    "native": "models.native",
    "bridge": "models.lens",
    "hooks": "models.hooks",
    "attention": "models.attention",
    "sites": "models.sites",
    "model_spec": "models.spec",
    "recording": "models.recording",
    "selective_scan": "mamba.selective_scan",
    "scan_kernels": "mamba.scan_kernels",
    "hidden_attention": "mamba.hidden_attention",
    "hidden_attention_kernels": "mamba.hidden_attention_kernels",
    "circuits": "measures.circuits",
    "scores": "measures.scores",
    "ablation": "measures.ablation",
    "text_stimuli": "stimuli.text",
    "name_texts": "stimuli.names",
    "corpus": "stimuli.corpus",
    "stats": "statistics.resampling",
    "transitions": "statistics.transitions",
    "lm_recipe": "training.recipe",
    "lm_training": "training.loop",
    "batches": "training.batches",
    "history": "training.history",
    "checkpoints": "training.checkpoints",
    "tracking": "training.tracking",
    "workers": "training.workers",
    "repeat_mixture": "training.repeat_mixture",
    "recall_mixture": "training.recall_mixture",
    "reference_models": "training.reference_models",
    "mamba_models": "training.mamba_models",
    "threads": "training.threads",
    "artifacts": "files.artifacts",
    "folders": "files.folders",
    "params": "files.params",
    "hub_files": "files.hub_files",
    "answers": "console.answers",
    "answers_table": "console.answers_table",
    "stages": "pipeline.stages",
    "overlays": "pipeline.overlays",
    "import_closure": "pipeline.import_closure",
}


class _Before(MetaPathFinder, Loader):
    """Finds a module by the name it had before."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, module = fullname.rpartition(".")
        known = package == __name__ and module in _BEFORE
        return spec_from_loader(fullname, self) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        found = import_module(f"{__name__}.{_BEFORE[spec.name.rpartition('.')[2]]}")
        self._own = found.__spec__
        return found

    def exec_module(self, module: ModuleType) -> None:
        # It ran under its own name; importlib has just given it the old one's spec.
        module.__spec__ = self._own


sys.meta_path.append(_Before())


def __getattr__(name: str) -> Any:
    if name not in _FRONT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    return getattr(import_module(f"{__name__}.{_FRONT[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
