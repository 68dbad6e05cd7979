"""Ablation: what copying loses without heads, against layer-matched random heads, and what is
specific to copying.

Copy-specific harm is the rise of the loss at the copied tokens minus its rise at the same tokens,
at the same places, after a first word that holds nothing to copy. A head that merely helps to write
hurts both alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from cursive_circuits.data_stimuli import Stimuli
from cursive_circuits.measure_heads import in_batches, prompt_means
from cursive_circuits.model import CursiveTransformer, Head
from cursive_circuits.model_watching import observing
from cursive_circuits.params import Interventions, Statistics
from cursive_circuits.run_directory import Trained
from interp_core.plotting import interval_text
from interp_core.progress import progress
from interp_core.statistics.resampling import mean_interval

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
Values = Mapping[Head, Tensor]


@torch.no_grad()
def mean_outputs(
    trained: Trained, stimuli: Stimuli, *, batch_size: int
) -> dict[Head, Float[Tensor, " d_head"]]:
    """z of every head, mean over all places of the control prompts: what it collects when there is
    nothing to copy.
    """
    model = trained.model
    totals = {head: torch.zeros(model.d_head, dtype=torch.float64) for head in model.heads}
    count = 0
    for part in in_batches(stimuli, batch_size):
        real = torch.from_numpy(part.prompts.control != trained.tokens.pad)
        with observing(model) as seen:
            model(*_inputs(model, part.prompts.control, part.control_text))
        count += int(real.sum())
        for head in model.heads:
            z = seen[head.layer, head.kind].z[:, :, head.number].cpu().double()
            totals[head] += z[real].sum(dim=0)
    return {head: (total / count).float().to(model.device) for head, total in totals.items()}


@torch.no_grad()
def copy_losses(
    trained: Trained, stimuli: Stimuli, *, batch_size: int
) -> Float[np.ndarray, "prompt 2"]:
    """Nats at the copied tokens, prompt means; and at the same places of the control."""
    found = []
    for part in in_batches(stimuli, batch_size):
        sides = ((part.prompts.tokens, part.text), (part.prompts.control, part.control_text))
        pairs = part.prompts.pairs
        columns = []
        for ids, text in sides:
            logits = trained.model(*_inputs(trained.model, ids, text)).logits
            at = logits[torch.from_numpy(pairs.batch), torch.from_numpy(pairs.query)]
            target = torch.from_numpy(ids[pairs.batch, pairs.query + 1]).to(at.device)
            loss = functional.cross_entropy(at, target, reduction="none").double().cpu().numpy()
            columns.append(
                prompt_means(loss, pairs.batch, np.ones(len(pairs), dtype=bool), len(part))
            )
        found.append(np.stack(columns, axis=1))
    return np.concatenate(found)


def _inputs(model: CursiveTransformer, ids: np.ndarray, text: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(ids).to(model.device), torch.from_numpy(text).to(model.device)


def harms(
    trained: Trained,
    stimuli: Stimuli,
    sets: Sequence[Sequence[Head]],
    values: Values,
    *,
    batch_size: int,
    label: str,
) -> Float[np.ndarray, "set prompt 2"]:
    """Rise of the loss when each set of heads collects constant vectors; columns copied tokens,
    control.
    """
    clean = copy_losses(trained, stimuli, batch_size=batch_size)
    distinct = list(dict.fromkeys(tuple(sorted(heads)) for heads in sets))
    found = {}
    for heads in progress(distinct, f"{trained.name}: {label}", unit="set"):
        with trained.model.replacing({head: values[head] for head in heads}):
            found[heads] = copy_losses(trained, stimuli, batch_size=batch_size) - clean
    return np.stack([found[tuple(sorted(heads))] for heads in sets])


def ranked(excess: Float[np.ndarray, "layer head"]) -> list[Head]:
    """Self-attention heads, the highest excess prefix matching first."""
    order = np.argsort(-excess, axis=None, kind="stable")
    places = (np.unravel_index(int(flat), excess.shape) for flat in order)
    return [Head(int(layer), "self", int(head)) for layer, head in places]


def matched_sets(
    top: Sequence[Head], heads: Iterable[Head], draws: int, rng: np.random.Generator
) -> list[list[Head]]:
    """Random sets outside `top`, each with a partner for every top head: of its layer and kind
    while there are any left, else of the nearest layer.
    """
    pool = [head for head in heads if head not in top and head.kind == top[0].kind]
    sets = []
    for _ in range(draws):
        left, chosen = list(pool), []
        for head in top[: len(pool)]:
            nearest = min(abs(other.layer - head.layer) for other in left)
            near = [other for other in left if abs(other.layer - head.layer) == nearest]
            chosen.append(near[int(rng.integers(len(near)))])
            left.remove(chosen[-1])
        sets.append(sorted(chosen))
    return sets


def ablation_report(
    trained: Trained,
    stimuli: Stimuli,
    excess: Float[np.ndarray, "layer head"],
    settings: Interventions,
    tests: Statistics,
    *,
    batch_size: int,
) -> tuple[Arrays, Report]:
    """Top heads against random ones, dose by dose and with zeros instead of means; every head
    alone.

    Arrays: `alone` [layer, kind, head, 2]: rise of the loss without one head, at copied tokens and
    in the control.
    """
    model = trained.model
    rng = np.random.default_rng([settings.seed, 40])
    means = mean_outputs(trained, stimuli, batch_size=batch_size)
    zeros = {head: torch.zeros_like(value) for head, value in means.items()}
    order = ranked(excess)
    top = order[: settings.top]
    random = matched_sets(top, model.heads, settings.draws, rng)
    report: Report = {
        "n": len(stimuli),
        "top": [str(head) for head in top],
        "draws": settings.draws,
    }
    for how, values in (("mean", means), ("zero", zeros)):
        found = harms(
            trained, stimuli, [top, *random], values, batch_size=batch_size, label=f"{how} ablation"
        )
        report[how] = _against(found, tests, rng)
    report["dose"] = []
    for k in [k for k in settings.dose if 2 * k <= len(order)]:
        sets = [order[:k], *matched_sets(order[:k], model.heads, settings.dose_draws, rng)]
        found = harms(trained, stimuli, sets, means, batch_size=batch_size, label=f"{k} heads")
        report["dose"].append({"k": k, **_against(found, tests, rng)})
    alone = harms(
        trained,
        stimuli,
        [[head] for head in model.heads],
        means,
        batch_size=batch_size,
        label="each head",
    )
    arrays = {"alone": alone.mean(axis=1).reshape(model.n_layers, 2, model.n_heads, 2)}
    clean = copy_losses(trained, stimuli, batch_size=batch_size).mean(axis=0)
    report |= {"clean": {"copied": float(clean[0]), "control": float(clean[1])}}
    return arrays, report


def _against(
    found: Float[np.ndarray, "set prompt 2"], tests: Statistics, rng: np.random.Generator
) -> Report:
    """The first set's rise of the loss with intervals over prompts, and the copy-specific part
    against the other sets': p = (1 + sets at least as harmful) / (1 + sets).
    """
    specific = found[..., 0] - found[..., 1]
    columns = np.stack([found[0, :, 0], found[0, :, 1], specific[0]], axis=1)
    interval = mean_interval(columns, rng, resamples=tests.resamples)
    random = specific[1:].mean(axis=1)
    low, high = np.quantile(random, [0.025, 0.975])
    named = {
        name: {
            "value": float(interval.value[i]),
            "ci": [float(interval.low[i]), float(interval.high[i])],
        }
        for i, name in enumerate(("copied", "control", "specific"))
    }
    hits = int((random >= specific[0].mean()).sum())
    chance = {"mean": float(random.mean()), "low": float(low), "high": float(high)}
    return named | {"random": chance, "p": (1 + hits) / (1 + len(random))}


def copying_verdict(heads: Report, ablation: Report, tests: Statistics) -> Report:
    """Whether there are induction heads: excess attention at the induction place, family-wise, AND
    copy-specific harm without the top heads: its interval clear of zero, at least smallest_loss,
    and more than all but needed_level of the layer-matched random sets do.
    """
    harm = ablation["mean"]["specific"]
    p = ablation["mean"]["p"]
    needed = harm["ci"][0] > 0 and harm["value"] >= tests.smallest_loss and p < tests.needed_level
    found = bool(heads["induction_heads"]) and needed
    anywhere = heads["anywhere"]
    words = (
        f"best head {heads['best']}: excess {heads['best_excess']:.3f} (anywhere after the earlier "
        "occurrence: "
        f"{anywhere['head']} {anywhere['excess']:.3f} at {anywhere['offset']:+d}); without "
        f"{' '.join(ablation['top'])} "
        f"copied tokens lose {interval_text(harm['value'], harm['ci'], 3)} nats more than control "
        "tokens (random sets "
        f"{ablation['mean']['random']['mean']:.3f}, p = {p:.3f})"
    )
    looking = "heads that look as induction heads do, not shown to be needed more than random ones"
    verdict = (
        "induction heads"
        if found
        else looking
        if heads["induction_heads"]
        else "no induction heads at this scale"
    )
    return {
        "induction": found,
        "matching": bool(heads["induction_heads"]),
        "needed": needed,
        "verdict": f"{verdict}: {words}",
    }
