"""Path patching: does a reader lose its prefix matching when one writer is taken out of its keys
(or queries, values)?

Composition scores compare weights; this takes what the writer really writes, minus its mean, out of
the residual stream that one head reads through one of its matrices, and lets everything else run as
it was (Wang et al. 2022).
"""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr

from cursive_circuits.data_stimuli import Stimuli
from cursive_circuits.intervene import mean_outputs
from cursive_circuits.model import Head
from cursive_circuits.model_watching import observing
from cursive_circuits.params import Statistics
from cursive_circuits.run_directory import Trained
from interp_core.measures.paths import Cut, Reads, without
from interp_core.plotting import interval_text
from interp_core.progress import progress
from interp_core.statistics.interval import Interval
from interp_core.statistics.resampling import mean_interval

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
MEASURES = ("attention at the reader's place", "logit of the copied token")


@torch.no_grad()
def path_effects(
    trained: Trained, stimuli: Stimuli, readers: Mapping[Head, int], *, batch_size: int
) -> dict[tuple[Head, Head, Reads], Float[np.ndarray, "prompt 2"]]:
    """For every reader (with its offset from the earlier occurrence), earlier writer and matrix:
    how the reader's attention at that offset, and the logit of the copied token, change. Means over
    each prompt's copy operations.
    """
    model, pairs = trained.model, stimuli.prompts.pairs
    means = mean_outputs(trained, stimuli, batch_size=batch_size)
    ids, text = torch.from_numpy(stimuli.prompts.tokens), torch.from_numpy(stimuli.text)
    inputs = ids.to(model.device), text.to(model.device)
    where, query, earlier, target = (
        torch.from_numpy(values).to(model.device)
        for values in (pairs.batch, pairs.query, pairs.earlier, pairs.target)
    )

    def measured(reader: Head) -> np.ndarray:
        with observing(model) as seen:
            logits = model(*inputs).logits[where, query]

        key = torch.minimum(earlier + readers[reader], query)
        match = seen[reader.layer, "self"].call.entries(where, query, key[None])[
            0, :, reader.number
        ]
        right = logits.gather(1, target[:, None])[:, 0] - logits.mean(dim=1)
        both = torch.stack([match, right], dim=1).double().cpu().numpy()

        return np.stack(
            [both[pairs.batch == prompt].mean(axis=0) for prompt in range(len(stimuli))]
        )

    with observing(model) as plain:
        model(*inputs)

    found = {}

    for reader in progress(list(readers), f"{trained.name}: paths", unit="reader"):
        clean = measured(reader)

        for writer in (head for head in model.heads if head.layer < reader.layer):
            z = plain[writer.layer, writer.kind].z[:, :, writer.number]
            part = model.written(writer, z - means[writer])
            for reads in get_args(Reads):
                cut = Cut(reader.layer, reads, (reader.number,), part)
                with without(model, [cut], lambda: model(*inputs)):
                    found[reader, writer, reads] = measured(reader) - clean

    return found


def path_report(
    found: dict[tuple[Head, Head, Reads], Float[np.ndarray, "prompt 2"]],
    z: Arrays,
    tests: Statistics,
    rng: np.random.Generator,
) -> tuple[Arrays, Report]:
    """Effects with intervals beside the weights' z, and whether they agree: Spearman's correlation
    over all writers of the readers between z and the loss of prefix matching (of the copied token's
    logit, for values).

    Arrays: `effect` [path, 2], `low`, `high`, `z` [path], `names` [path, 3] (reader, writer,
    matrix).
    """
    paths = list(found)
    intervals = [mean_interval(found[path], rng, resamples=tests.resamples) for path in paths]
    n = len(next(iter(found.values())))
    weights = np.array([_z(z, *path) for path in paths])
    arrays = {
        "effect": np.stack([interval.value for interval in intervals]),
        "low": np.stack([interval.low for interval in intervals]),
        "high": np.stack([interval.high for interval in intervals]),
        "z": weights,
        "names": np.array([[str(reader), str(writer), reads] for reader, writer, reads in paths]),
    }
    report: Report = {"n": n}

    for reads in get_args(Reads):
        # Values move what is copied, not where a head looks.
        column = 1 if reads == "v" else 0
        mine = np.array([path[2] == reads for path in paths])
        effect = arrays["effect"][mine, column]
        strongest = int(np.flatnonzero(mine)[weights[mine].argmax()])
        largest = int(np.flatnonzero(mine)[effect.argmin()])
        agreement = 0.0

        if np.ptp(effect) > 0:
            agreement = float(spearmanr(weights[mine], -effect)[0])  # pyright: ignore[reportArgumentType]

        report[reads] = {
            "measure": MEASURES[column],
            "agreement": agreement,
            "by_weights": _path(arrays, strongest, column, n),
            "by_effect": _path(arrays, largest, column, n),
            "median_effect": float(np.median(effect)),
        }

    report["verdict"] = _verdict(report)

    return arrays, report


def _z(z: Arrays, reader: Head, writer: Head, reads: Reads) -> float:
    return float(
        z[f"{writer.kind}_{reads}_z"][writer.layer, writer.number, reader.layer, reader.number]
    )


def _path(arrays: Arrays, at: int, column: int, n: int) -> Report:
    reader, writer, _ = arrays["names"][at]
    value, low, high = (float(arrays[end][at, column]) for end in ("effect", "low", "high"))
    effect = Interval(value, low, high, n, "prompts")
    named = {"reader": str(reader), "writer": str(writer), "z": float(arrays["z"][at])}
    return named | effect.to_json()


def _verdict(report: Report) -> str:
    keys, queries, values = report["k"], report["q"], report["v"]
    chosen = keys["by_weights"]
    falls = chosen["high"] < 0 and chosen["value"] <= 2 * min(keys["median_effect"], 0.0)
    word = "confirmed" if falls else "not confirmed"
    ends = [chosen["low"], chosen["high"]]

    return (
        f"strongest K-composition, {chosen['writer']} into {chosen['reader']} "
        f"(z {chosen['z']:.1f}), {word}: attention {interval_text(chosen['value'], ends, 3)} "
        f"without it in the keys, median writer {keys['median_effect']:+.3f}; largest "
        f"{_told(keys)} through keys, {_told(queries)} through queries, and {_told(values)} in "
        f"the copied token's logit through values"
    )


def _told(reads: Report) -> str:
    largest = reads["by_effect"]
    return f"{largest['writer']} {largest['value']:+.3f}"
