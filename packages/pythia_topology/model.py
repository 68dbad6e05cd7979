"""Loading the models of the study, and which settings their scores do not depend on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

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
    from interp_core.models.subject import Transformer


def load(name: str, known: Mapping[str, ModelSpec], params: PythiaTopology) -> "Transformer":
    """The model of this name, checked, on the device and in the type that params say."""
    from interp_core.loading import load_model
    from interp_core.models.subject import as_transformer
    from interp_core.training.threads import use_threads

    use_threads(params.threads)
    subject = load_model(
        spec_of(name, known),
        name=short_name(name),
        device=params.device,
        dtype=params.dtype,
        bos=params.bos,
    )
    return as_transformer(subject)
