"""Which single read copying needs: of the queries, and of the position that holds the answer.

A read is what one position's mixing takes from one key. Queries read at offsets from the earlier
occurrence s of their token; the answer's own position s + 1 reads at offsets from itself.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp_core.statistics.interval import Interval, bootstrap, student
from mamba_induction.intervene import without_reads
from mamba_induction.intervene_bench import (
    ACCURACY,
    Bench,
    Block,
    Change,
    Report,
    compared,
    layer_sets,
)
from mamba_induction.params import ANSWER_OFFSETS, OFFSETS, PREFIX, MambaInduction
from mamba_induction.streams import STREAMS

Keys = Int[Tensor, "key pair"]
Arrays = dict[str, np.ndarray]


def reads_of_queries(bench: Bench, params: MambaInduction, arrays: Arrays) -> Report:
    """Reads of the queries cut at each offset and at those of prefix matching together, in each
    layer and in all, against as many random other keys of the same queries.
    """
    batch, query, earlier = bench.places
    cuts = {f"{offset:+d}": (offset,) for offset in OFFSETS} | {"prefix": PREFIX}
    rng = STREAMS.rng("reads_of_queries", params.seed)
    report: Report = {}

    def without(layers: list[int], keys: Keys) -> Block:
        n = len(keys)
        return without_reads(
            bench.subject, layers, batch.repeat(n), query.repeat(n), keys.flatten()
        )

    for where, layers in layer_sets(bench.subject).items():
        random = {}

        for size in (1, len(PREFIX)):

            def draw(size: int = size, layers: list[int] = layers) -> Block:
                return without(layers, other_keys(bench, size, rng))

            random[size] = bench.draws(draw, params, f"random reads of {where}")
            arrays[f"reads/{where}/random {size}"] = random[size]

        for name, offsets in cuts.items():
            keys = torch.stack([earlier + offset for offset in offsets])
            changed = bench.change(without(layers, keys))

            arrays[f"reads/{where}/{name}"] = changed
            found = compared(bench, changed, random[len(offsets)], params)
            report.setdefault(where, {})[name] = found

    return report


def reads_of_answers(bench: Bench, params: MambaInduction, arrays: Arrays) -> Report:
    """The same for what the answer's position itself reads: what makes it a key that is found.

    At each offset, against one key before all of these; answers near the start of a prompt have no
    such key, and are cut in neither. `past`: all keys before the answer, against as many reads of
    the same layers anywhere in the prompt.
    """
    batch, _, earlier = bench.places
    answer = earlier + 1
    rng = STREAMS.rng("reads_of_answers", params.seed)

    # Every named offset and one random key must fit between BOS and the answer.
    roomy = answer + min(ANSWER_OFFSETS) > 0
    report: Report = {}

    def one(layers: list[int], key: Int[Tensor, " pair"]) -> Block:
        return without_reads(bench.subject, layers, batch[roomy], answer[roomy], key)

    def several(layers: list[int], reads: tuple[Tensor, Tensor, Tensor]) -> Block:
        return without_reads(bench.subject, layers, *reads)

    past = _past(batch, answer)

    for where, layers in layer_sets(bench.subject).items():

        def draw_one(layers: list[int] = layers) -> Block:
            # A key before all named ones; position 0 is BOS and may be drawn.
            room = (answer[roomy] + min(ANSWER_OFFSETS)).cpu().numpy()
            return one(layers, torch.as_tensor(rng.integers(0, room), device=answer.device))

        def draw_several(layers: list[int] = layers) -> Block:
            return several(layers, _anywhere(bench, len(past[0]), rng))

        label = f"random reads of answers, {where}"
        random = {
            "one": bench.draws(draw_one, params, label),
            "past": bench.draws(draw_several, params, label),
        }

        changes = {
            f"{offset:+d}": bench.change(one(layers, answer[roomy] + offset))
            for offset in ANSWER_OFFSETS
        }
        changes["past"] = bench.change(several(layers, past))

        for name, changed in changes.items():
            against = random["past" if name == "past" else "one"]
            arrays[f"answer_reads/{where}/{name}"] = changed
            report.setdefault(where, {})[name] = compared(bench, changed, against, params)

        arrays |= {f"answer_reads/{where}/random {kind}": drawn for kind, drawn in random.items()}

    return report


def _past(
    batch: Int[Tensor, " pair"], position: Int[Tensor, " pair"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Every key before each of these positions: prompt, position and key of each read."""
    key = torch.arange(int(position.max()), device=position.device)
    pair, before = torch.nonzero(key[None] < position[:, None], as_tuple=True)

    return batch[pair], position[pair], key[before]


def _anywhere(bench: Bench, reads: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """As many different reads of earlier keys, by any position of any prompt."""
    n, length = bench.prompts.tokens.shape
    query, key = np.tril_indices(length, -1)

    drawn = rng.choice(n * len(query), size=reads, replace=False)
    batch, place = np.divmod(drawn, len(query))

    found = [
        torch.as_tensor(index, device=bench.subject.device)
        for index in (batch, query[place], key[place])
    ]
    return found[0], found[1], found[2]


def other_keys(bench: Bench, size: int, rng: np.random.Generator) -> Keys:
    """For each copy operation `size` different keys, up to its query and not among the offsets of
    the profile.
    """
    pairs = bench.prompts.pairs
    position = np.arange(bench.prompts.tokens.shape[1])
    away = position - pairs.earlier[:, None]  # [pair, position]

    beside = (away < min(OFFSETS)) | (away > max(OFFSETS))
    allowed = (position <= pairs.query[:, None]) & beside

    order = np.where(allowed, rng.random(allowed.shape), np.inf).argsort(axis=1)
    return torch.as_tensor(order[:, :size].T.copy(), device=bench.subject.device)


def verdict(
    bench: Bench, control: Bench, reads: Report, arrays: Arrays, params: MambaInduction
) -> Report:
    """Whether the model copies at all, and which single read of its queries copying needs, if any.

    A read is needed when its cut costs `smallest_change` of accuracy, more than every random
    control, and when its interval, over all cuts together, excludes zero. Nothing is named because
    it is the largest of many changes that may all be noise.
    """
    gained = bench.clean[:, ACCURACY] - control.clean[:, ACCURACY]
    rng = STREAMS.rng("verdict", params.seed)
    above = bootstrap(gained, rng, resamples=params.bootstrap_resamples, unit="prompts")

    ends = above.ends
    copies = ends is not None and ends[0] > 0 and above.value >= params.smallest_change

    single = [
        (where, name)
        for where, offsets in reads.items()
        for name in offsets
        if where != "all" and name != "prefix"  # those cut several reads at once
    ]
    changes = {cut: _together(arrays, cut, len(single), params) for cut in single}
    ordered = sorted(single, key=lambda cut: changes[cut].value)
    needed = [cut for cut in ordered if _needed(changes[cut], reads, cut, params)]

    best = needed[0] if copies and needed else None
    other = next((cut for cut in ordered if cut != best), None)

    found: Report = {
        "copies": copies,
        "accuracy_above_control": above.to_json(),
        "cuts": len(single),
        "level": 1 - params.causal_level / len(single),
        "best": None if best is None else _named(best, changes[best]),
        "other": None if best is None or other is None else _named(other, changes[other]),
    }
    return found | {"says": _sentence(bench, control, found)}


def _together(arrays: Arrays, cut: tuple[str, str], cuts: int, params: MambaInduction) -> Interval:
    """A cut's change of accuracy; the intervals of all cuts hold together (Bonferroni)."""
    values: Change = arrays[f"reads/{cut[0]}/{cut[1]}"]
    level = 1 - params.causal_level / cuts
    return student(values[:, ACCURACY], unit="prompts", level=level)


def _needed(change: Interval, reads: Report, cut: tuple[str, str], params: MambaInduction) -> bool:
    where, name = cut
    p = reads[where][name]["random"]["accuracy"]["p"]

    large = change.value <= -params.smallest_change
    sure = change.ends is not None and change.ends[1] < 0
    return large and sure and p is not None and p <= params.causal_level


def _named(cut: tuple[str, str], change: Interval) -> Report:
    return {"where": cut[0], "offset": int(cut[1]), "accuracy": change.to_json()}


def _sentence(bench: Bench, control: Bench, found: Report) -> str:
    clean, nothing = (float(each.clean[:, ACCURACY].mean()) for each in (bench, control))

    if not found["copies"]:
        return (
            f"does not copy (accuracy {clean:.2f}, {nothing:.2f} where there is nothing to copy): "
            "nothing to explain"
        )

    if found["best"] is None:
        return f"copies (accuracy {clean:.2f}); no single read is told from random ones"

    best, other = found["best"], found["other"]
    return (
        f"copies (accuracy {clean:.2f}) by what is read in {best['where']} at offset "
        f"{best['offset']:+d} ({best['accuracy']['value']:+.2f} without), "
        f"any other single read {other['accuracy']['value']:+.2f} at most"
    )
