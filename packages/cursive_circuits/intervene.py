"""Ablation: what copying loses without heads, what is specific to copying, and the verdict.

Copy-specific harm is the rise of the loss at the copied tokens minus its rise at the same tokens,
at the same places, after a first word that holds nothing to copy. A head that merely helps to write
hurts both alike. Both parts are reported: a difference is also large where the control gets
cheaper.

Two kinds of ablation. *Total*: other heads run on, so that whatever feeds the copying heads hurts
as much as they do. *Direct*: every other head collects what it collected before, so that only what
the heads themselves write to the prediction is lost. The verdict rests on direct harm, because
random sets that hold a feeding head leave the total one without power.
"""

from collections.abc import Collection, Iterator, Sequence
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
from cursive_circuits.streams import STREAMS
from interp_core.measures.ablation import ablated
from interp_core.measures.means import PlaceMeans
from interp_core.plotting import interval_text
from interp_core.progress import progress
from interp_core.statistics.against_random import AgainstRandom, against_random
from interp_core.statistics.interval import bootstrap
from interp_core.statistics.random_sets import matched_sets, unmatched_sets

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
Values = dict[Head, Tensor]
Sets = Sequence[Sequence[Head]]
Harms = Float[np.ndarray, "set prompt 2"]  # of copied tokens, of the same tokens in the control


@torch.no_grad()
def mean_outputs(
    trained: Trained, stimuli: Stimuli, *, batch_size: int
) -> dict[Head, Float[Tensor, " d_head"]]:
    """z of every head, mean over all places of the control prompts.

    It is what a head collects when there is nothing to copy.
    """
    model = trained.model
    means: PlaceMeans[Head] = PlaceMeans()

    for part in in_batches(stimuli, batch_size):
        real = torch.from_numpy(part.prompts.control != trained.tokens.pad)

        with observing(model) as seen:
            model(*_inputs(model, part.prompts.control, part.control_text))

        vectors = {head: seen[head.layer, head.kind].z[:, :, head.number] for head in model.heads}
        means.add(vectors, real)

    return means.means()


@torch.no_grad()
def copy_losses(
    trained: Trained, stimuli: Stimuli, *, batch_size: int
) -> Float[np.ndarray, "prompt 2"]:
    """Nats at the copied tokens, prompt means; and at the same places of the control."""
    found = []

    for part in in_batches(stimuli, batch_size):
        sides = [_losses(trained, part, ids, text) for ids, text in _sides(part)]
        found.append(np.stack(sides, axis=1))

    return np.concatenate(found)


def _sides(part: Stimuli) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and text of the prompts, then of their control."""
    yield part.prompts.tokens, part.text
    yield part.prompts.control, part.control_text


def _losses(
    trained: Trained, part: Stimuli, ids: np.ndarray, text: np.ndarray
) -> Float[np.ndarray, " prompt"]:
    pairs = part.prompts.pairs
    where, query = torch.from_numpy(pairs.batch), torch.from_numpy(pairs.query)

    logits = trained.model(*_inputs(trained.model, ids, text)).logits[where, query]
    target = torch.from_numpy(ids[pairs.batch, pairs.query + 1]).to(logits.device)
    loss = functional.cross_entropy(logits, target, reduction="none").double().cpu().numpy()

    everywhere = np.ones(len(pairs), dtype=bool)
    return prompt_means(loss, pairs.batch, everywhere, len(part))


def _inputs(model: CursiveTransformer, ids: np.ndarray, text: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(ids).to(model.device), torch.from_numpy(text).to(model.device)


def harms(
    trained: Trained,
    stimuli: Stimuli,
    sets: Sets,
    values: Values,
    *,
    batch_size: int,
    label: str,
) -> Harms:
    """Total rise of the loss when each set of heads collects constant vectors."""
    clean = copy_losses(trained, stimuli, batch_size=batch_size)
    found = []

    for heads in progress(list(sets), f"{trained.name}: {label}", unit="set"):
        with ablated(trained.model, {head.place: values[head] for head in heads}):
            found.append(copy_losses(trained, stimuli, batch_size=batch_size) - clean)

    return np.stack(found)


@torch.no_grad()
def direct_harms(
    trained: Trained, stimuli: Stimuli, sets: Sets, values: Values, *, batch_size: int
) -> Harms:
    """The same while all heads outside the set collect what they collected before.

    What a set writes then reaches the prediction straight or through MLPs, and through no head.
    """
    model = trained.model
    found = np.zeros((len(sets), len(stimuli), 2))
    start = 0

    for part in progress(
        list(in_batches(stimuli, batch_size)), f"{trained.name}: direct", unit="batch"
    ):
        rows = slice(start, start + len(part))
        start += len(part)

        for side, (ids, text) in enumerate(_sides(part)):
            with observing(model) as seen:
                model(*_inputs(model, ids, text))

            held = {
                head.place: seen[head.layer, head.kind].z[:, :, head.number] for head in model.heads
            }
            clean = _losses(trained, part, ids, text)

            for number, heads in enumerate(sets):
                with ablated(model, held | {head.place: values[head] for head in heads}):
                    found[number, rows, side] = _losses(trained, part, ids, text) - clean

    return found


def ranked(excess: Float[np.ndarray, "layer head"]) -> list[Head]:
    """Self-attention heads, the highest excess prefix matching first."""
    order = np.argsort(-excess, axis=None, kind="stable")
    places = (np.unravel_index(int(flat), excess.shape) for flat in order)
    return [Head(int(layer), "self", int(head)) for layer, head in places]


def ablation_report(
    trained: Trained,
    stimuli: Stimuli,
    excess: Float[np.ndarray, "layer head"],
    settings: Interventions,
    tests: Statistics,
    *,
    matching: Collection[Head],
    batch_size: int,
) -> tuple[Arrays, Report]:
    """Top heads against random ones, directly and in total, dose by dose; every head alone.

    `matching` heads look at what followed the earlier occurrence: no set of others holds them.
    Arrays: `alone` [layer, kind, head, 2]: rise of the loss without one head, at copied tokens and
    in the control.
    """
    model = trained.model
    rng = STREAMS.rng("interventions", settings.seed)
    means = mean_outputs(trained, stimuli, batch_size=batch_size)
    zeros = {head: torch.zeros_like(value) for head, value in means.items()}
    sizes = {"batch_size": batch_size}

    order = ranked(excess)
    top = order[: settings.top]
    own = [head for head in model.heads if head.kind == "self"]

    # Heads that look at the same place would stand in for one another.
    others = [head for head in own if head not in top and head not in matching]
    instead = unmatched_sets(len(top), others, rng, draws=settings.draws)
    part = stimuli.part(slice(0, settings.direct_prompts))
    direct = direct_harms(trained, part, [top, *instead], means, **sizes)

    report: Report = {
        "n": len(stimuli),
        "top": [str(head) for head in top],
        "direct": _against(direct, tests, rng) | {"heads_to_draw_from": len(others)},
    }

    matched = matched_sets(top, own, rng, draws=settings.dose_draws, without=top)
    for how, values in (("mean", means), ("zero", zeros)):
        sets = [top, *matched.sets]
        found = harms(trained, stimuli, sets, values, label=f"{how} ablation", **sizes)
        report[how] = _against(found, tests, rng) | {"sets": matched.words}

    report["dose"] = []
    for k in [k for k in settings.dose if 2 * k <= len(order)]:
        matched = matched_sets(order[:k], own, rng, draws=settings.dose_draws, without=order[:k])
        sets = [order[:k], *matched.sets]
        found = harms(trained, stimuli, sets, means, label=f"{k} heads", **sizes)
        report["dose"].append({"k": k, **_against(found, tests, rng), "sets": matched.words})

    each = [[head] for head in model.heads]
    alone = harms(trained, stimuli, each, means, label="each head", **sizes).mean(axis=1)
    arrays = {"alone": alone.reshape(model.n_layers, 2, model.n_heads, 2)}

    clean = copy_losses(trained, stimuli, batch_size=batch_size)
    for side, name in enumerate(("copied", "control")):
        found = bootstrap(clean[:, side], rng, resamples=tests.resamples, unit="prompts")
        report[f"clean_{name}"] = found.to_json()

    return arrays, report


def _against(found: Harms, tests: Statistics, rng: np.random.Generator) -> Report:
    """The first set's rise of the loss, in parts, and its copy-specific part against other sets."""
    specific = found[..., 0] - found[..., 1]
    parts = {"copied": found[0, :, 0], "control": found[0, :, 1], "specific": specific[0]}

    report: Report = {}
    for name, values in parts.items():
        interval = bootstrap(values, rng, resamples=tests.resamples, unit="prompts")
        report[name] = interval.to_json()

    observed, random = float(specific[0].mean()), specific[1:].mean(axis=1)
    report["against"] = against_random(observed, random, direction="above").to_json()
    return report


def copying_verdict(heads: Report, ablation: Report, tests: Statistics) -> Report:
    """Whether there are induction heads: matching, family-wise, AND direct copy-specific harm.

    Harm counts when copied tokens lose and the difference from the control is clear of zero, is at
    least smallest_loss, and is beyond the sets of other heads at needed_level.
    """
    direct = ablation["direct"]
    harm, copied = direct["specific"], direct["copied"]
    against = AgainstRandom.from_json(direct["against"])

    clear = harm["low"] > 0 and copied["low"] > 0
    needed = clear and harm["value"] >= tests.smallest_loss and against.beats(tests.needed_level)
    matching = bool(heads["induction_heads"])

    if matching and needed:
        verdict = "induction heads"
    elif matching:
        verdict = "heads that look as induction heads do, not shown to write the copy"
    else:
        verdict = "no induction heads at this scale"

    anywhere = heads["anywhere"]
    look = (
        f"best head {heads['best']}: excess {heads['best_excess']['value']:.3f} (anywhere after "
        f"the earlier occurrence: {anywhere['head']} {anywhere['value']:.3f} at "
        f"{anywhere['offset']:+d})"
    )
    parts = {name: _text(direct[name]) for name in ("copied", "control", "specific")}
    lose = (
        f"without what {' '.join(ablation['top'])} write to the prediction copied tokens lose "
        f"{parts['copied']} nats, control tokens {parts['control']}, difference "
        f"{parts['specific']} ({against.says})"
    )

    return {
        "induction": matching and needed,
        "matching": matching,
        "needed": needed,
        "verdict": f"{verdict}: {look}; {lose}",
    }


def _text(entry: Report) -> str:
    return interval_text(entry["value"], [entry["low"], entry["high"]], 3)
