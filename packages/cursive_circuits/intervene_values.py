"""What the values of copying heads are made of: the token itself, earlier heads, or MLPs.

A head that looks one place after the token to copy must find that token there, carried on by an
earlier head. Here parts of the residual stream, less their means, are taken out of the values of
all copying heads at once; keys, queries and everything else stay as they were.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cursive_circuits.data_stimuli import Stimuli
from cursive_circuits.measure_heads import in_batches, prompt_means
from cursive_circuits.model import Head
from cursive_circuits.model_watching import observing, observing_mlps
from cursive_circuits.run_directory import Trained
from interp_core.measures.paths import Cut, without
from interp_core.statistics.interval import mean_share

Report = dict[str, Any]
Written = Float[Tensor, "row position d_model"]

# Parts of the stream that are taken out together, under the names of the report.
SOURCES: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "token": ("token",),
    "heads": ("heads",),
    "mlps": ("mlps",),
    "heads_and_mlps": ("heads", "mlps"),
    "everything": ("token", "heads", "mlps"),
}


@torch.no_grad()
def value_accuracy(
    trained: Trained, stimuli: Stimuli, readers: Sequence[Head], *, batch_size: int
) -> dict[str, Float[np.ndarray, " prompt"]]:
    """Share of the copied tokens that are predicted right, by prompt, without each of SOURCES."""
    model = trained.model
    found: dict[str, list[np.ndarray]] = {name: [] for name in SOURCES}

    for part in in_batches(stimuli, batch_size):
        ids = torch.from_numpy(part.prompts.tokens).to(model.device)
        inputs = ids, torch.from_numpy(part.text).to(model.device)
        pairs = part.prompts.pairs
        where, query, target = (
            torch.from_numpy(values).to(model.device)
            for values in (pairs.batch, pairs.query, pairs.target)
        )
        parts = _parts(trained, inputs)

        for name, chosen in SOURCES.items():
            cuts = []
            for layer in sorted({reader.layer for reader in readers}):
                of_layer = tuple(reader.number for reader in readers if reader.layer == layer)
                taken = [parts[source][layer] for source in chosen]
                part_taken = sum(taken, torch.zeros_like(parts["token"][0]))
                cuts.append(Cut(layer, "v", of_layer, part_taken))

            with without(model, cuts, lambda inputs=inputs: model(*inputs)):
                logits = model(*inputs).logits[where, query]

            right = (logits.argmax(dim=-1) == target).double().cpu().numpy()
            everywhere = np.ones(len(pairs), dtype=bool)
            found[name].append(prompt_means(right, pairs.batch, everywhere, len(part)))

    return {name: np.concatenate(values) for name, values in found.items()}


def _parts(trained: Trained, inputs: tuple[Tensor, Tensor]) -> dict[str, list[Written]]:
    """What each source has written before each layer, less its mean over the batch's places."""
    model = trained.model
    with observing(model) as seen, observing_mlps(model) as mlps:
        model(*inputs)

    token = model.embed(inputs[0])
    real = inputs[0] != trained.tokens.pad
    heads, mlp = torch.zeros_like(token), torch.zeros_like(token)
    found: dict[str, list[Written]] = {"token": [], "heads": [], "mlps": []}

    for layer in range(model.n_layers):
        for name, written in (("token", token), ("heads", heads), ("mlps", mlp)):
            found[name].append(written - written[real].mean(dim=0))

        for head in (head for head in model.heads if head.layer == layer):
            z = seen[layer, head.kind].z[:, :, head.number]
            heads = heads + model.written(head, z)
        mlp = mlp + mlps[layer]

    return found


def value_report(found: dict[str, Float[np.ndarray, " prompt"]], readers: Sequence[Head]) -> Report:
    """Accuracy on copied tokens without each source, over prompts, and the source that matters."""
    report: Report = {"readers": [str(head) for head in readers]}
    for name, values in found.items():
        report[name] = mean_share(values, unit="prompts").to_json()

    alone = ("token", "heads", "mlps")
    report["most"] = min(alone, key=lambda name: report[name]["value"])
    return report
