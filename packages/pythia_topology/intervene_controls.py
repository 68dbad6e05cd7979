"""Who is ablated, and beside which random sets.

Two controls, because they answer two questions. LAYER-MATCHED sets are other heads of the same
layers, whatever they do: in a layer full of induction heads they are induction heads too. OUTSIDE
sets hold no induction head and no previous-token head, which writes what induction heads read: they
say what losing as many heads costs that have no part in the circuit. Those come from any layer,
since the circuit may fill its own.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import click
import numpy as np
import torch
from jaxtyping import Float

from interp_core.errors import InputError
from interp_core.models.subject import Transformer
from interp_core.statistics.heads import Head
from interp_core.statistics.random_sets import RandomSets, matched_sets
from interp_core.stimuli.prompts import Prompts
from pythia_topology.params import PythiaTopology

_NAMED = 8  # layers that a caption names one by one


@dataclass(frozen=True)
class Roles:
    """What heads do, as scores say: who is ablated, and who may be in no outside control."""

    excess: Float[np.ndarray, "layer head"]  # excess prefix matching
    induction: Collection[Head]  # those above the null
    writers: Collection[Head]  # previous-token heads

    @property
    def ranked(self) -> list[Head]:
        """All heads, the one with the most excess first."""
        return rank_heads(self.excess)


@dataclass(frozen=True)
class Controls:
    """Distinct random sets beside a chosen set of heads."""

    layer_matched: RandomSets[Head]
    outside: RandomSets[Head]

    @property
    def outside_words(self) -> str:
        """For captions: how many, of how many, from which layers."""
        found = self.outside
        if not found.sets:
            return "no set of so many heads is outside the circuit"

        exists = f"{found.distinct}" if found.distinct < 1_000_000 else f"{found.distinct:.1e}"
        drawn = f"{len(found.sets)} of {exists}"
        if found.complete:
            drawn = f"all {found.distinct}"

        where = ", ".join(f"L{layer}" for layer in found.layers)
        if len(found.layers) > _NAMED:
            where = f"{len(found.layers)} layers"
        return f"{drawn} distinct sets of heads outside the circuit, from {where}"

    @property
    def sets(self) -> list[tuple[Head, ...]]:
        """Those of both kinds, layer-matched ones first."""
        return [*self.layer_matched.sets, *self.outside.sets]


def check_sizes(subject: Transformer, params: PythiaTopology) -> None:
    """InputError when more heads are to be ablated than the model has."""
    total = subject.n_layers * subject.n_heads
    top, random = params.causal_top_k, params.causal_random_k

    for option, k in (("causal_top_k (--topk)", top), ("causal_random_k", random)):
        if k > total:
            raise InputError(f"{subject.name}: {option} is {k}, but the model has {total} heads")

    if top + random > total:
        raise InputError(
            f"{subject.name}: {top} top and {random} random heads are more than its {total}"
        )


# A set of heads runs the layers behind its first head again: of a few random heads, about so much.
SUFFIX = 0.6
_WORTH_SAYING = 60  # seconds


@torch.no_grad()
def say_expected(
    subject: Transformer, prompts: Prompts, params: PythiaTopology, *, single: int
) -> None:
    """A line before ablations that will last over a minute: about how long, by one timed prompt.

    `single`: prompts on which every head is ablated alone.
    """
    sets = 5 * (1 + 2 * params.causal_draws) + len(params.dose_k) * (1 + params.dose_draws)
    alone = subject.n_layers * subject.n_heads
    runs = SUFFIX * (sets * params.causal_sequences + alone * single)

    ids = subject.ids(prompts.tokens[: min(4, len(prompts.tokens))])
    subject.trunk(ids)  # the first call pays for what is set up once
    begun = time.perf_counter()
    subject.trunk(ids)
    seconds = runs * (time.perf_counter() - begun) / len(ids)

    if seconds > _WORTH_SAYING:
        click.echo(f"{subject.name}: ablating {sets + alone} sets, about {seconds / 60:.0f} min")


def rank_heads(excess: Float[np.ndarray, "layer head"]) -> list[Head]:
    """All heads, the one with the highest score first; ties by layer and head."""
    order = np.argsort(-excess, axis=None, kind="stable")
    places = zip(*np.unravel_index(order, excess.shape), strict=True)
    return [Head(int(layer), int(head)) for layer, head in places]


@dataclass(frozen=True)
class _Anywhere:
    """A head that may stand for one of any layer."""

    head: Head
    layer: int = 0


def controls_of(
    top: Sequence[Head], roles: Roles, rng: np.random.Generator, *, size: int, draws: int
) -> Controls:
    """Both kinds of random sets beside the top heads."""
    pool = sorted(roles.ranked)
    same = matched_sets(top, pool, rng, draws=draws, size=size, without=top)

    circuit = {*top, *roles.induction, *roles.writers}
    idle = [_Anywhere(head) for head in pool if head not in circuit]
    found = matched_sets([_Anywhere(top[0])], idle, rng, draws=draws, size=size)
    sets = [tuple(one.head for one in chosen) for chosen in found.sets]
    return Controls(same, RandomSets(sets, found.distinct, {}))
