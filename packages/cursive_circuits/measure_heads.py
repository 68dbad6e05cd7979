"""Attention of every self-attention head at pair level, on every family, against controls.

All scores are attention in [0, 1], averaged over copy operations and then over prompts. A token is
half a stroke, so copying is of pairs: an induction head looks at one of the two tokens after the
earlier occurrence, the next (+1) or the one of the same slot in the next pair (+2), and where it
looks is asked at both slots. A head that looks further on can copy too, where earlier heads have
carried the next token to: such heads are named apart, as relays.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from cursive_circuits.data_stimuli import Stimuli
from cursive_circuits.data_tokens import Vocabulary
from cursive_circuits.model import Head
from cursive_circuits.model_watching import observing
from cursive_circuits.params import Statistics
from cursive_circuits.run_directory import Trained
from interp_core.statistics.interval import Interval, bootstrap
from interp_core.statistics.resampling import mean_interval, sign_flip_threshold

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
OFFSETS = tuple(
    range(-4, 9)
)  # tokens from the earlier occurrence; those after it can carry induction
AFTER = tuple(offset for offset in OFFSETS if offset > 0)
INDUCED = AFTER.index(2) + 1  # the first so many are induction's: the next token and its neighbour


@dataclass(frozen=True)
class Asked:
    """Keys whose attention is added up to a score, and the copy operations that it is asked at."""

    keys: Int[np.ndarray, "key pair"]
    where: Bool[np.ndarray, " pair"]


def asked(stimuli: Stimuli, tokens: Vocabulary) -> dict[str, Asked]:
    """Every score as keys.

    `prefix_matching` the token after the earlier occurrence (`_direction`, `_radius`: at queries of
    that slot); `next_pair` both tokens of the pair after it, at radius slots; `duplicate` the
    earlier occurrence; `previous_token`; `previous_pair` both tokens of the pair before the
    query's; `pen_lift` the last radius with the pen up; `word_boundary` the last two WORD tokens;
    `offset/o` the token at earlier + o.
    """
    ids, pairs = stimuli.prompts.tokens, stimuli.prompts.pairs
    batch, query, earlier = pairs.batch, pairs.query, pairs.earlier
    slot, everywhere = query % 2, np.ones(len(query), dtype=bool)
    before = query - slot
    found = {
        "prefix_matching": Asked(pairs.induction_key[None], everywhere),
        "prefix_matching_direction": Asked(pairs.induction_key[None], slot == 0),
        "prefix_matching_radius": Asked(pairs.induction_key[None], slot == 1),
        "next_pair": Asked(
            np.stack([earlier + 1, earlier + 2]), (slot == 1) & (earlier + 2 <= query)
        ),
        "duplicate": Asked(pairs.duplicate_key[None], everywhere),
        "previous_token": Asked(pairs.previous_key[None], everywhere),
        "previous_pair": Asked(np.stack([before - 2, before - 1]), before >= 2),
    }
    up = (ids >= tokens.directions) & (ids < tokens.directions + tokens.radii)
    lift = _last(up, batch, query)
    found["pen_lift"] = Asked(np.maximum(lift, 0)[None], lift >= 0)
    word = _last(ids == tokens.word, batch, query)
    found["word_boundary"] = Asked(np.stack([word - 1, word]), word >= 1)

    for offset in OFFSETS:
        key = earlier + offset
        found[f"offset/{offset:+d}"] = Asked(
            np.clip(key, 0, query)[None], (key >= 0) & (key <= query)
        )

    return {name: score for name, score in found.items() if score.where.any()}


def _last(
    marked: Bool[np.ndarray, "prompt position"], batch: np.ndarray, query: np.ndarray
) -> np.ndarray:
    """The last marked position at or before each query, -1 where there is none."""
    place = np.where(marked, np.arange(marked.shape[1]), -1)
    return np.maximum.accumulate(place, axis=1)[batch, query]


@torch.no_grad()
def attention_scores(
    trained: Trained, stimuli: Stimuli, *, batch_size: int
) -> dict[str, Float[np.ndarray, "prompt layer head"]]:
    """Prompt means of every score, and under `control/` of prefix_matching and offsets at the same
    places of the control. A prompt without a place for a score has not-a-number there. No pattern
    is built: fused attention, then single entries.
    """
    parts: dict[str, list[np.ndarray]] = {}

    for part in in_batches(stimuli, batch_size):
        wanted = asked(part, trained.tokens)
        found = _entries(trained, part, part.prompts.tokens, part.text, wanted)
        only = {
            name: wanted[name] for name in wanted if name.startswith(("prefix_matching", "offset/"))
        }
        control = _entries(trained, part, part.prompts.control, part.control_text, only)
        found |= {f"control/{name}": values for name, values in control.items()}

        for name, values in found.items():
            parts.setdefault(name, []).append(values)

    sizes = {sum(map(len, values)) for values in parts.values()}

    return {
        name: np.concatenate(values)
        for name, values in parts.items()
        if sum(map(len, values)) == max(sizes)
    }


def in_batches(stimuli: Stimuli, batch_size: int) -> Iterator[Stimuli]:
    """Parts of at most batch_size prompts, in order."""
    for start in range(0, len(stimuli), batch_size):
        yield stimuli.part(slice(start, start + batch_size))


def _entries(
    trained: Trained, stimuli: Stimuli, ids: np.ndarray, text: np.ndarray, wanted: dict[str, Asked]
) -> dict[str, np.ndarray]:
    model, pairs = trained.model, stimuli.prompts.pairs
    where, query = (
        torch.from_numpy(values).to(model.device) for values in (pairs.batch, pairs.query)
    )
    keys = torch.from_numpy(np.concatenate([score.keys for score in wanted.values()])).to(
        model.device
    )

    with observing(model) as seen:
        model(torch.from_numpy(ids).to(model.device), torch.from_numpy(text).to(model.device))

    layers = [
        seen[layer, "self"].call.entries(where, query, keys) for layer in range(model.n_layers)
    ]
    entries = torch.stack(layers, dim=2).double().cpu().numpy()  # key pair layer head
    found, row = {}, 0

    for name, score in wanted.items():
        total = entries[row : row + len(score.keys)].sum(axis=0)
        row += len(score.keys)
        found[name] = prompt_means(total, pairs.batch, score.where, len(stimuli))

    return found


def prompt_means(
    values: Float[np.ndarray, "pair *unit"],
    batch: Int[np.ndarray, " pair"],
    where: Bool[np.ndarray, " pair"],
    n: int,
) -> Float[np.ndarray, "prompt *unit"]:
    """Mean over each prompt's pairs in `where`; not-a-number for a prompt without any."""
    sums = np.zeros((n, *values.shape[1:]))
    np.add.at(sums, batch[where], values[where])
    counts = np.bincount(batch[where], minlength=n).astype(np.float64)
    counts[counts == 0] = np.nan
    return sums / counts.reshape(-1, *[1] * (values.ndim - 1))


def head_report(
    scores: dict[str, Float[np.ndarray, "prompt layer head"]],
    tests: Statistics,
    rng: np.random.Generator,
) -> tuple[Arrays, Report]:
    """Means with 95 % intervals over prompts [layer, head] as arrays, and what stands out as a
    report.

    `by_offset` [offset, layer, head] is excess attention (over the same places of the control) at
    each of AFTER, `excess` its sum over the two places of induction, +1 and +2. A head passes at an
    offset when a sign-flip test over prompts, family-wise over heads and offsets, rejects there
    with at least smallest_excess. An induction head passes at +1 or +2; a relay only further on.
    """
    names = [f"offset/{offset:+d}" for offset in AFTER if f"offset/{offset:+d}" in scores]
    each = np.stack(
        [np.nan_to_num(scores[name] - scores[f"control/{name}"]) for name in names], axis=1
    )
    tested = sign_flip_threshold(each, rng, alpha=tests.level, draws=tests.draws)
    by_offset = each.mean(axis=0)
    excess = each[:, :INDUCED].sum(axis=1)
    arrays: Arrays = {"by_offset": by_offset, "prompts/excess": excess}

    for name, values in ({"excess": excess} | scores).items():
        known = values[~np.isnan(values).any(axis=(1, 2))]
        interval = mean_interval(known, rng, resamples=tests.resamples)
        arrays |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}

    passed = (tested.p <= tests.level) & (by_offset >= tests.smallest_excess)
    induction = passed[:INDUCED].any(axis=0)
    arrays |= {
        "p": tested.p[:INDUCED].min(axis=0),
        "induction": induction,
        "relay": passed.any(axis=0) & ~induction,
    }
    layer, head = (
        int(n) for n in np.unravel_index(arrays["excess"].argmax(), arrays["excess"].shape)
    )
    report: Report = {
        "n": len(each),
        "induction_heads": _named(arrays["induction"]),
        "relays": _named(arrays["relay"]),
        "best": str(Head(layer, "self", head)),
        "best_excess": _interval(arrays, "excess", layer, head, len(each)),
        "best_p": float(arrays["p"][layer, head]),
        "anywhere": _anywhere(each, tests, rng),
        "largest": {
            name: _largest(arrays, name, int((~np.isnan(scores[name]).any(axis=(1, 2))).sum()))
            for name in scores
            if "/" not in name and f"{name}_low" in arrays
        },
    }

    return arrays, report


def _named(heads: Bool[np.ndarray, "layer head"]) -> list[str]:
    return [str(Head(int(layer), "self", int(head))) for layer, head in np.argwhere(heads)]


def _anywhere(
    each: Float[np.ndarray, "prompt offset layer head"], tests: Statistics, rng: np.random.Generator
) -> Report:
    """The largest excess at any offset of AFTER."""
    offset, layer, head = (
        int(n) for n in np.unravel_index(each.mean(axis=0).argmax(), each.shape[1:])
    )
    there = each[:, offset, layer, head]
    interval = bootstrap(there, rng, resamples=tests.resamples, unit="prompts")
    named = {"head": str(Head(layer, "self", head)), "offset": AFTER[offset]}
    return named | interval.to_json()


def _largest(arrays: Arrays, name: str, n: int) -> Report:
    """The head with the largest score of a kind."""
    layer, head = np.unravel_index(arrays[name].argmax(), arrays[name].shape)
    named = {"head": str(Head(int(layer), "self", int(head)))}
    return named | _interval(arrays, name, int(layer), int(head), n)


def _interval(arrays: Arrays, name: str, layer: int, head: int, n: int) -> Report:
    value, low, high = (float(arrays[f"{name}{end}"][layer, head]) for end in ("", "_low", "_high"))
    return Interval(value, low, high, n, "prompts").to_json()
