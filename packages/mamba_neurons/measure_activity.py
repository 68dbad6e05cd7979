"""Activations of every kind of unit, text by text: what the measures of activity read.

inner   gated y of a Mamba's channels       gate   SiLU(z)       state   h[channel, state], flat
mlp     a transformer's MLP activations     resid  the residual stream after the layer
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from interp_core.errors import InputError
from interp_core.mamba.head_attention import HeadCall
from interp_core.mamba.hidden_attention import Call, mixer_calls
from interp_core.mamba.subject import MambaSubject
from interp_core.progress import progress
from mamba_neurons.data import Texts
from mamba_neurons.model import Model, clean_run

KINDS = {
    True: ("inner", "gate", "state", "resid"),
    False: ("mlp", "resid"),
}  # of a Mamba, of a transformer


def neuron_kind(model: Model) -> str:
    """What this model's neurons are called."""
    return KINDS[model.is_mamba][0]


@torch.no_grad()
def activations(
    model: Model, texts: Texts, layers: Sequence[int], kinds: Sequence[str], batch_size: int
) -> Iterator[tuple[int, dict[tuple[str, int], Float[np.ndarray, "token unit"]]]]:
    """Index of each text and its activations by (kind, layer), padding left out.

    InputError for a kind that the model does not have, a layer that is not there, or activations
    that are not numbers.
    """
    for layer in layers:
        model.check_layer(layer)

    known = KINDS[model.is_mamba]
    if unknown := [kind for kind in kinds if kind not in known]:
        has = ", ".join(known)
        raise InputError(f"{model.name} has no units of kind {unknown[0]}; it has {has}")

    needs_calls = bool({"gate", "state"} & set(kinds))
    label, row = f"{model.name}: activations", 0

    for batch in progress(texts.batches(batch_size), label, unit="batch"):
        clean = clean_run(model, batch)
        calls: list[Call] = []
        if needs_calls and isinstance(model.subject, MambaSubject):
            calls = mixer_calls(model.subject, clean.ids)

        for index, length in enumerate(batch.lengths):
            found: dict[tuple[str, int], np.ndarray] = {}

            for layer, kind in product(layers, kinds):
                if kind in ("inner", "mlp"):
                    a = clean.neurons[layer][index]
                elif kind == "resid":
                    a = clean.residual[layer + 1][index]
                else:
                    call = calls[layer].row(index)
                    a = silu(call.z[0]) if kind == "gate" else states(call)[0].flatten(1)

                found[kind, layer] = a[: int(length)].double().cpu().numpy()

            yield row, found
            row += 1


def states(call: Call) -> Float[Tensor, "batch position channel state"]:
    """h after every position, by the recurrence itself."""
    if isinstance(call, HeadCall):
        return call.states()

    h = torch.zeros(len(call.x), *call.A.shape, dtype=call.dt.dtype, device=call.dt.device)
    found = []

    for t in range(call.x.shape[1]):
        written = (call.dt[:, t] * call.x[:, t])[..., None] * call.B[:, t, None, :]
        h = torch.exp(call.dt[:, t, :, None] * call.A) * h + written
        found.append(h)

    return torch.stack(found, dim=1)
