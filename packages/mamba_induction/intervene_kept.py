"""Whether a few pieces suffice: one read and one shift are kept, the rest is taken away.

A piece can be needed without being enough. Here the layer that copying needs keeps, of all it
reads, one key; of its convolution, some taps; and the other layers move nothing between positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import combinations

import numpy as np
from jaxtyping import Int
from torch import Tensor

from interp_core.mamba.subject import MambaSubject
from interp_core.statistics.against_random import against_random
from interp_core.statistics.interval import mean_share
from mamba_induction.intervene import only_reads, taps_at, without_mixing, without_taps
from mamba_induction.intervene_bench import ACCURACY, Bench, Block, Report
from mamba_induction.intervene_reads import Arrays, other_keys
from mamba_induction.params import OFFSETS, MambaInduction
from mamba_induction.streams import STREAMS


def kept(bench: Bench, best: Report, params: MambaInduction, arrays: Arrays) -> Report:
    """Accuracy with little left, where `best` is the read that copying needs.

    `reads`: the queries of its layer keep one read, at each offset, against one random other key.
    `taps` (a Mamba): its convolution keeps some lags, all sets of them. `circuit`: read and taps
    together, then the other layers without mixing, then without their convolution's past too.
    """
    layer, offset = int(best["where"][1:]), best["offset"]
    batch, query, earlier = bench.places

    def one_read(key: Int[Tensor, " pair"]) -> Block:
        return only_reads(bench.subject, [layer], batch, query, key)

    def left(name: str, block: Block) -> Report:
        # accuracy itself, not its change: what is asked is how much is left
        accuracy = bench.change(block)[:, ACCURACY] + bench.clean[:, ACCURACY]
        arrays[f"kept/{name}"] = accuracy
        return mean_share(np.clip(accuracy, 0.0, 1.0), unit="prompts").to_json()

    rng = STREAMS.rng("reads_kept", params.seed)
    changes = bench.draws(
        lambda: one_read(other_keys(bench, 1, rng)[0]), params, f"random reads kept in L{layer}"
    )
    random = changes[:, ACCURACY] + bench.clean[:, ACCURACY].mean()
    arrays["kept/reads/random"] = random

    found: Report = {"layer": layer, "offset": offset, "clean": left("clean", nullcontext())}
    found["reads"] = {}

    for key in OFFSETS:
        share = left(f"reads/{key:+d}", one_read(earlier + key))
        against = against_random(share["value"], random, direction="above").to_json()
        found["reads"][f"{key:+d}"] = {"accuracy": share, "random": against}

    if isinstance(bench.subject, MambaSubject):
        found["taps"] = {
            "+".join(map(str, lags)): left(f"taps/{lags}", _only_taps(bench.subject, [layer], lags))
            for lags in _sets(bench.subject.d_conv)
        }

    found["circuit"] = {
        name: left(f"circuit/{name}", _together(blocks))
        for name, blocks in _circuit(bench, layer, offset).items()
    }
    return found


def circuit_lags(offset: int) -> tuple[int, ...]:
    """The taps that induction at this offset takes: the query's own token, the key's match
    `offset` back, and the value that came after it.
    """
    return tuple(sorted({0, max(offset - 1, 0), max(offset, 0)}))


def _circuit(bench: Bench, layer: int, offset: int) -> dict[str, Sequence[Block]]:
    """More and more taken away, by what is left. Each block is entered once, in its own run."""
    subject, shape = bench.subject, bench.prompts.tokens.shape
    others = [other for other in range(subject.n_layers) if other != layer]
    batch, query, earlier = bench.places

    def read() -> Block:
        return only_reads(subject, [layer], batch, query, earlier + offset)

    def unmixed() -> Block:
        return without_mixing(subject, others, (shape[0], shape[1]))

    if not isinstance(subject, MambaSubject):
        return {
            "one read": [read()],
            "one read, other layers unmixed": [read(), unmixed()],
        }

    lags = circuit_lags(offset)
    named = " and ".join(map(str, lags))

    def taps() -> Block:
        return _only_taps(subject, [layer], lags)

    return {
        "one read": [read()],
        f"taps {named}": [taps()],
        f"one read, taps {named}": [read(), taps()],
        "and other layers' scans unmixed": [read(), taps(), unmixed()],
        "and their convolutions at lag 0": [
            read(),
            taps(),
            unmixed(),
            _only_taps(subject, others, (0,)),
        ],
    }


def _only_taps(subject: MambaSubject, layers: Sequence[int], lags: Sequence[int]) -> Block:
    return without_taps(subject, layers, ~taps_at(subject, lags))


def _sets(taps: int) -> list[tuple[int, ...]]:
    """All sets of lags but none and all."""
    return [one for size in range(1, taps) for one in combinations(range(taps), size)]


@contextmanager
def _together(blocks: Sequence[Block]) -> Iterator[None]:
    """Several edits at once."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block)

        yield
