"""Per-prompt attention of models whose induction heads we chose: ground truth for everything
measured on layers.
"""

from collections.abc import Mapping

import numpy as np

from pythia_topology.measure_layer_profile import HeadEvidence


def planted(
    heads: Mapping[tuple[int, int], float],
    *,
    n_layers: int,
    n_heads: int = 4,
    n_prompts: int = 40,
    seed: int = 0,
    everywhere: Mapping[tuple[int, int], float] | None = None,
) -> HeadEvidence:
    """Noise about 0.05 on all heads; `heads` attend that much more to the true antecedents only;
    heads in `everywhere` attend that much more to true and shuffled antecedents alike, but not on
    the control.
    """
    rng = np.random.default_rng(seed)

    def noise(*before: int) -> np.ndarray:
        return rng.uniform(0, 0.1, (*before, n_layers, n_heads)).astype(np.float32)

    prefix_matching, control, shuffled = noise(n_prompts), noise(n_prompts), noise(20, n_prompts)
    for (layer, head), strength in heads.items():
        prefix_matching[:, layer, head] += strength
    for (layer, head), strength in (everywhere or {}).items():
        prefix_matching[:, layer, head] += strength
        shuffled[:, :, layer, head] += strength
    return HeadEvidence(prefix_matching, control, shuffled)
