"""Loading the models of the study, and knowing whether scores are still theirs."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from interp_core.files.artifacts import file_sha256
from interp_core.files.params import project_root
from interp_core.models.spec import ModelSpec, short_name, spec_of
from pythia_topology.params import PythiaTopology

# Settings that only read scores, or never touch them: changing one leaves measured scores alone.
READ_LATER = frozenset(
    {
        "split_lag",
        "equivalence_margin",
        "equivalence_alpha",
        "grid_points",
        "causal_top_k",
        "causal_random_k",
        "causal_draws",
        "causal_sequences",
        "causal_level",
        "dose_k",
        "dose_draws",
        "composition_distances",
        "composition_draws",
        "path_pairs",
        "revisions",
        "onset_resamples",
    }
)

if TYPE_CHECKING:
    from interp_core.models.subject import Subject


def load(name: str, known: Mapping[str, ModelSpec], params: PythiaTopology) -> "Subject":
    """The model of this name, checked, on the device and in the type that params say."""
    from interp_core.loading import load_model
    from interp_core.training.threads import use_threads

    use_threads(params.threads)
    return load_model(
        spec_of(name, known), name=short_name(name), device=params.device, dtype=params.dtype
    )


def fingerprint(name: str, known: Mapping[str, ModelSpec], params: PythiaTopology) -> str:
    """What scores of a model depend on.

    Its files (or pinned revision), the corpus, and every setting that is read before or while heads
    are scored.
    """
    from interp_core.loading import weights_sha256

    spec = spec_of(name, known)
    corpus = project_root() / "data" / "corpus"
    files = [corpus / "tokenizer.json", corpus / "tokens.npz"]
    if spec.path is not None:
        files += sorted(spec.path.glob("*.json"))

    described = [file_sha256(file) if file.is_file() else "" for file in files]
    weights = "" if spec.path is None else weights_sha256(spec.path)
    settings = params.model_dump(mode="json", exclude={"models", "threads", *READ_LATER})
    everything = [spec.model_dump(mode="json"), weights, described, settings]
    content = json.dumps(everything, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
