"""Does the calibrated recipe find the same 200 channels as the exact sweep of all of them?
mamba-130m's shape, T 32.

    python -m benchmarks.neurons_sweep FOLDER

Both parts are kept in FOLDER as they are done, layer by layer in random order, so that a run can be
broken off: the answer is then of the layers that are there. The whole sweep takes about an hour and
a half of one core.
"""

import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.mamba import subject
from benchmarks.neurons import one_text, settings, stack_of
from interp_core.files.artifacts import load_arrays, save_arrays
from interp_core.training.threads import use_threads
from mamba_neurons.intervene import neuron_effects
from mamba_neurons.intervene_estimates import whole_model
from mamba_neurons.model import Model, neuron_means

TOP, LENGTH = 200, 32


def sweep(folder: Path) -> None:
    """The recipe, then every layer; what the folder holds already is not done again."""
    use_threads(1)
    model, texts = Model(subject()), one_text(LENGTH)
    params = settings(calibration_channels=24, stack=stack_of(LENGTH))
    if not (folder / "recipe.npz").exists():
        start = time.process_time()
        whole = whole_model(
            model, texts, params, np.random.default_rng(0), measures=("kl",), top_k=TOP
        )
        seconds = np.array(time.process_time() - start)
        save_arrays(
            folder / "recipe.npz", {"kl": whole.mean_kl, "exact": whole.exact, "seconds": seconds}
        )
    means = neuron_means(model, texts, 1)
    for layer in np.random.default_rng(1).permutation(model.n_layers):
        path = folder / f"layer_{layer}.npz"
        if not path.exists():
            found = neuron_effects(
                model, texts, int(layer), range(model.n_neurons), params, means=means
            )
            save_arrays(path, {"kl": found.mean_kl})
        print(answer(folder), flush=True)


def answer(folder: Path) -> str:
    """Of the layers that were swept: how many channels belong to the recipe's top, how many to the
    exact one, how many to both. A channel belongs to the exact one when it is at least as strong as
    the recipe's weakest of the top.
    """
    recipe = load_arrays(folder / "recipe.npz")
    bar = np.sort(recipe["kl"], axis=None)[-TOP]
    layers = [
        layer for layer in range(len(recipe["kl"])) if (folder / f"layer_{layer}.npz").exists()
    ]
    exact = np.stack([load_arrays(folder / f"layer_{layer}.npz")["kl"] for layer in layers])
    ours, true = recipe["kl"][layers] >= bar, exact >= bar * (1 - 1e-6)
    return (
        f"{len(layers)} layers of {len(recipe['kl'])} ({', '.join(map(str, layers))}): "
        f"{ours.sum()} channels in the "
        f"recipe's top {TOP}, {true.sum()} by the sweep, {(ours & true).sum()} in both; largest "
        "that was missed "
        f"{exact[~ours].max() / bar:.3f} of the weakest; {recipe['exact'].sum()} channels exact in "
        "the recipe, "
        f"{recipe['seconds']:.0f} s"
    )


if __name__ == "__main__":
    sweep(Path(sys.argv[1]))
