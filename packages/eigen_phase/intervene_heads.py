"""What pattern accuracy loses without a head, at several moments of a training."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eigen_phase.data import Sequences
from eigen_phase.data_rows import held_out_rows
from eigen_phase.measure_heads import attention_scores, per_target
from eigen_phase.model import Transformer
from eigen_phase.params import Controls
from eigen_phase.run_directory import RunDirectory
from eigen_phase.streams import STREAMS
from interp_core.measures.ablation import ablated
from interp_core.models.sites import Site
from interp_core.statistics.against_random import against_random
from interp_core.statistics.heads import Head
from interp_core.statistics.interval import bootstrap
from interp_core.statistics.random_sets import matched_sets

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]


def head_ablations(run: RunDirectory, settings: Controls) -> tuple[Arrays, Report]:
    """Each head alone replaced by its mean, over the clock; at the end the best of a kind together.

    The best induction heads, and the best previous-token heads, half a layer of them at most, are
    compared with the other sets of heads from the same layers: with all of them, and with those
    that hold no head of either kind. Arrays: `step`, `accuracy` [step]; `effect`, `effect_low`,
    `effect_high` [step, layer, head]: change of pattern accuracy, 95 % over rows; `other_effect`
    [step, layer, head]: change of the accuracy on all other targets.
    """
    rows = held_out_rows(run.training, run.training.test_settings)
    rng = STREAMS.rng("ablations", run.training.seed)
    steps = spread_steps(run, settings.ablation_checkpoints, among=run.checkpoint_steps)
    found = [_single(run.model(step), rows, settings, rng) for step in steps]
    arrays = {name: np.stack([part[name] for part in found]) for name in found[0]}
    arrays["step"] = np.array(steps)

    model = run.model()
    scores = attention_scores(model, rows)
    means = mean_outputs(model, rows)
    kinds = {
        kind: _of_kind(scores[score], settings.head_share)
        for kind, score in (("induction", "prefix_matching"), ("previous_token", "previous_token"))
    }
    every = [head for heads in kinds.values() for head in heads]
    joint = {
        kind: _joint(model, rows, means, heads[: model.n_heads // 2], every, settings, rng)
        for kind, heads in kinds.items()
    }

    found = joint["induction"]
    others = found["others"]["random"]["value"]
    beside = "no other set" if others is None else f"{others:+.2f} on average"
    verdict = (
        f"without {' '.join(found['heads'])} pattern accuracy changes by"
        f" {found['change']['value']:+.2f}, without other heads of the same layers: {beside}"
        f" ({found['others']['says']})"
    )
    return arrays, {"name": run.name, "verdict": verdict, "steps": steps, **joint}


def spread_steps(run: RunDirectory, n: int, *, among: Sequence[int]) -> list[int]:
    """Of these kept steps n at most, spread over the change of pattern accuracy; the first and the
    last are in.
    """
    kept = np.array(among)
    rows = np.searchsorted(run.history["step"], kept)
    path = np.concatenate([[0.0], np.abs(np.diff(run.history["pattern_accuracy"][rows])).cumsum()])

    # Half as much by the clock, for flat stretches.
    path = path / max(path[-1], 1e-12) + np.linspace(0, 0.5, len(path))
    wanted = np.linspace(path[0], path[-1], n)
    return sorted({int(kept[np.abs(path - place).argmin()]) for place in wanted})


def mean_outputs(model: Transformer, rows: Sequences) -> dict[Head, Float[Tensor, " d_head"]]:
    """Mean z of every head over rows and positions."""
    z = model.head_outputs(torch.from_numpy(rows.ids).to(model.device)).mean(dim=(1, 3))
    return {
        Head(layer, head): z[layer, head]
        for layer in range(model.n_layers)
        for head in range(model.n_heads)
    }


def constant(
    model: Transformer, values: Mapping[Head, Float[Tensor, " d_head"]]
) -> AbstractContextManager[None]:
    """Inside the block these heads write a constant (zero, or a mean) at every position."""
    places = {(Site(head.layer, "attn.z"), head.head): value for head, value in values.items()}
    return ablated(model, places)


def _single(
    model: Transformer, rows: Sequences, settings: Controls, rng: np.random.Generator
) -> Arrays:
    means = mean_outputs(model, rows)
    shape = (model.n_layers, model.n_heads)
    found = {
        name: np.zeros(shape) for name in ("effect", "effect_low", "effect_high", "other_effect")
    }
    clean = _by_row(model, rows)
    for head, mean in means.items():
        with constant(model, {head: mean}):
            change = _by_row(model, rows) - clean

        interval = bootstrap(change[0], rng, resamples=settings.draws, unit="rows")
        found["effect"][head], found["other_effect"][head] = change.mean(axis=1)
        found["effect_low"][head] = interval.low
        found["effect_high"][head] = interval.high

    return found | {"accuracy": clean[0].mean()}


def _by_row(model: Transformer, rows: Sequences) -> Float[np.ndarray, "2 row"]:
    """Accuracy of each row on predictable targets, and on the others."""
    hit, _ = per_target(model, rows)
    flagged = rows.predictable[:, 1:]
    some = flagged.any(axis=1)
    parts = [
        (hit * where)[some].sum(axis=1) / where[some].sum(axis=1) for where in (flagged, ~flagged)
    ]
    return np.stack(parts)


def _of_kind(score: Float[np.ndarray, "layer head"], share: float) -> list[Head]:
    """Heads whose score is at least this share of the best one's, the best first."""
    layers, heads = np.nonzero(score >= share * score.max())
    found = sorted(zip(layers, heads, strict=True), key=lambda head: -score[head])
    return [Head(int(layer), int(head)) for layer, head in found]


def _joint(
    model: Transformer,
    rows: Sequences,
    means: dict[Head, Tensor],
    chosen: Sequence[Head],
    of_a_kind: Collection[Head],
    settings: Controls,
    rng: np.random.Generator,
) -> Report:
    clean = _by_row(model, rows)[0]

    def change(heads: Collection[Head]) -> Float[np.ndarray, " row"]:
        with constant(model, {head: means[head] for head in heads}):
            return _by_row(model, rows)[0] - clean

    of_chosen = bootstrap(change(chosen), rng, resamples=settings.draws, unit="rows")
    found: Report = {
        "heads": [str(head) for head in chosen],
        "accuracy": float(clean.mean()),
        "change": of_chosen.to_json(),
    }

    for name, without in (("others", ()), ("neither_kind", of_a_kind)):
        sets = matched_sets(chosen, list(means), rng, draws=settings.random_sets, without=without)
        effects = [float(change(heads).mean()) for heads in sets.sets]
        compared = against_random(of_chosen.value, effects, direction="below")
        found[name] = compared.to_json() | {
            "sets": sets.words,
            "lowest": min(effects, default=None),
        }

    return found
