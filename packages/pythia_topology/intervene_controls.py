"""Who is ablated, and beside which random sets.

Two controls, because they answer two questions. LAYER-MATCHED sets are other heads of the same
layers, whatever they do: in a layer full of induction heads they are induction heads too. OUTSIDE
sets hold no induction head and no previous-token head, which writes what induction heads read: they
say what losing as many heads costs that have no part in the circuit. Those come from any layer,
since the circuit may fill its own.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp_core.errors import InputError
from interp_core.models.subject import Transformer
from interp_core.statistics.heads import Head
from interp_core.statistics.random_sets import RandomSets, matched_sets
from pythia_topology.params import PythiaTopology


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

        drawn = f"{len(found.sets)} of {found.distinct}"
        if found.complete:
            drawn = f"all {found.distinct}"

        where = ", ".join(f"L{layer}" for layer in found.layers)
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
