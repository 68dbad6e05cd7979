"""Random sets of heads or channels, matched by layer to a chosen set, and how many there are.

Sets drawn twice are one set: a p-value counts distinct ones. Few are enumerated, many are drawn
without replacement.

    sets = matched_sets(top, heads, rng, draws=200, without=top)
    effects = [ablate(one) for one in sets.sets]            # sets.distinct of them exist
    found = against_random(ablate(top), effects, direction="above")
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from interp_core.errors import InputError


@runtime_checkable
class HasLayer(Protocol):
    """Head, Channel and a study's own kinds of head."""

    @property
    def layer(self) -> int: ...


Unit = TypeVar("Unit", bound=HasLayer)
Counts = tuple[tuple[int, int], ...]  # layer and how many units of it, by layer


@dataclass(frozen=True)
class RandomSets(Generic[Unit]):
    """Distinct sets, none of them the chosen one."""

    sets: list[tuple[Unit, ...]]  # each in the order of the pool
    distinct: int  # how many there are, drawn or not
    chosen: dict[int, int]  # units of the chosen set, by layer

    @property
    def complete(self) -> bool:
        """Whether these are all there are: their p-value is then exact."""
        return len(self.sets) == self.distinct

    @cached_property
    def layers(self) -> list[int]:
        """Layers that partners come from: others than the chosen ones' where one had none left."""
        return sorted({unit.layer for one in self.sets for unit in one})

    @cached_property
    def moved(self) -> int:
        """Partners, of one set, that come from another layer than the unit they stand for."""
        if not self.sets:
            return 0

        here = Counter(unit.layer for unit in self.sets[0])
        return sum(max(0, here[layer] - self.chosen.get(layer, 0)) for layer in here)

    @property
    def words(self) -> str:
        """For captions: how many, of how many, from which layers."""
        exists = f"{self.distinct}" if self.distinct < 1_000_000 else f"{self.distinct:.1e}"
        drawn = f"all {exists}" if self.complete else f"{len(self.sets)} of {exists}"
        where = " and ".join(f"L{layer}" for layer in self.layers) or "no layer"
        elsewhere = f", {self.moved} a set from another layer than its own" if self.moved else ""

        return f"{drawn} distinct random sets, from {where}{elsewhere}"


def matched_sets(
    chosen: Sequence[Unit],
    pool: Collection[Unit],
    rng: np.random.Generator,
    *,
    draws: int,
    size: int | None = None,
    without: Collection[Unit] = (),
) -> RandomSets[Unit]:
    """At most `draws` distinct sets with as many units of each layer as the chosen set has.

    All sets in order when there are at most `draws`; else a uniform sample of them. Units in
    `without` are in no set: pass `chosen` for disjoint sets, and induction heads or their writers
    where the control must hold none. The chosen set itself is never among them.

    A layer that has too few units gives what it has; the rest comes from the nearest layers, with
    every way of breaking ties between two layers allowed. With another `size` than the chosen
    set's, the layers of the chosen units are gone through again and again. A pool that is too
    small has no sets: distinct is 0, and no test is possible.
    """
    if not chosen or draws < 1:
        raise InputError("random sets need a chosen unit and a draw: raise both to 1 or more")

    k = len(chosen) if size is None else size
    wanted = Counter(chosen[i % len(chosen)].layer for i in range(k))

    by_layer: dict[int, list[Unit]] = {}
    left_out = set(without)
    free = [unit for unit in dict.fromkeys(pool) if unit not in left_out]
    for unit in free:
        by_layer.setdefault(unit.layer, []).append(unit)

    # Sets with other counts by layer are other sets: the numbers of sets of each kind add up.
    kinds = sorted(_kinds(wanted, {layer: len(units) for layer, units in by_layer.items()}))
    sizes = [math.prod(math.comb(len(by_layer[at]), n) for at, n in kind) for kind in kinds]
    has_chosen = set(chosen) <= set(free) and len(set(chosen)) == k
    distinct = sum(sizes) - int(has_chosen)

    same = frozenset(chosen)
    if distinct <= draws:
        sets = [one for one in _all(kinds, by_layer) if frozenset(one) != same]
    elif distinct <= 4 * draws:
        # Nearly all of them: rejecting repeats would take long.
        every = [one for one in _all(kinds, by_layer) if frozenset(one) != same]
        sets = [every[i] for i in np.sort(rng.choice(distinct, size=draws, replace=False))]
    else:
        sets = _drawn(kinds, sizes, by_layer, same, draws, rng)

    return RandomSets(sets, distinct, dict(Counter(unit.layer for unit in chosen)))


def unmatched_sets(
    k: int, pool: Sequence[Unit], rng: np.random.Generator, *, draws: int
) -> list[tuple[Unit, ...]]:
    """At most `draws` distinct sets of k units of the pool, of whatever layers.

    All of them when there are no more; a pool of fewer than k units has none.
    """
    if math.comb(len(pool), k) <= draws:
        return list(combinations(pool, k))

    found: dict[tuple[Unit, ...], None] = {}
    while len(found) < draws:
        drawn = np.sort(rng.choice(len(pool), size=k, replace=False))
        found[tuple(pool[int(i)] for i in drawn)] = None

    return list(found)


def _kinds(wanted: Counter[int], available: dict[int, int]) -> set[Counts]:
    """The counts by layer nearest to the wanted ones; several where two layers are as near."""
    if wanted.total() > sum(available.values()):
        return set()

    # Every layer first serves its own units, so that one layer's lack takes no other's partners.
    own = {at: min(n, available.get(at, 0)) for at, n in wanted.items()}
    lacking = [at for at in sorted(wanted) for _ in range(wanted[at] - own[at])]
    kinds = {tuple(sorted((at, n) for at, n in own.items() if n))}

    for layer in lacking:
        kinds = {more for kind in kinds for more in _one_more(kind, layer, available)}

    return kinds


def _one_more(kind: Counts, layer: int, available: dict[int, int]) -> Iterator[Counts]:
    taken = dict(kind)
    open_layers = [at for at, n in available.items() if taken.get(at, 0) < n]
    nearest = min(abs(at - layer) for at in open_layers)

    for at in open_layers:
        if abs(at - layer) == nearest:
            yield tuple(sorted((taken | {at: taken.get(at, 0) + 1}).items()))


def _all(kinds: Sequence[Counts], by_layer: dict[int, list[Unit]]) -> Iterator[tuple[Unit, ...]]:
    for kind in kinds:
        parts = [combinations(by_layer[layer], n) for layer, n in kind]
        for chosen in product(*parts):
            yield tuple(unit for part in chosen for unit in part)


def _drawn(
    kinds: Sequence[Counts],
    sizes: Sequence[int],
    by_layer: dict[int, list[Unit]],
    same: frozenset[Unit],
    draws: int,
    rng: np.random.Generator,
) -> list[tuple[Unit, ...]]:
    """Distinct sets, each as likely: a kind by its number of sets, then units of each layer."""
    total = sum(sizes)
    shares = [size / total for size in sizes]
    found: dict[tuple[Unit, ...], None] = {}

    while len(found) < draws:
        kind = kinds[int(rng.choice(len(kinds), p=shares))]
        one: tuple[Unit, ...] = ()

        for layer, n in kind:
            units = by_layer[layer]
            one += tuple(units[i] for i in np.sort(rng.choice(len(units), size=n, replace=False)))

        if frozenset(one) != same:
            found[one] = None

    return list(found)
