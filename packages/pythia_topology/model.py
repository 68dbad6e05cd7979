"""Loading the models of the study, and which settings their scores do not depend on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from interp_core.models.spec import ModelSpec, short_name, spec_of
from pythia_topology.params import PythiaTopology

# Settings that only read scores, or never touch them: changing one leaves measured scores as they
# are.
READ_LATER = frozenset(
    {
        "split_lag",
        "equivalence_margin",
        "causal_top_k",
        "causal_random_k",
        "causal_draws",
        "causal_sequences",
        "dose_k",
        "composition_distances",
        "composition_draws",
        "path_pairs",
        "revisions",
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
