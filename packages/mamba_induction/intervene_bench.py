"""A model on the prompts it copies, what an edit changes there, and how a change is told from
chance.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.measures.scores import copy_behaviour
from interp_core.models.subject import Subject
from interp_core.progress import progress
from interp_core.statistics.against_random import against_random
from interp_core.statistics.interval import bootstrap, mean_share
from interp_core.stimuli.prompts import Prompts
from mamba_induction.params import MambaInduction
from mamba_induction.streams import STREAMS

Report = dict[str, Any]
Change = Float[np.ndarray, "prompt two"]  # of loss (nats) and accuracy at the copy operations
Draws = Float[np.ndarray, "draw two"]  # mean change under each random control
Block = AbstractContextManager[None]

LOSS, ACCURACY = 0, 1  # columns of a change


@dataclass(frozen=True)
class Bench:
    """A model and the prompts it copies, all in one batch, with the clean loss and accuracy."""

    subject: Subject
    prompts: Prompts
    clean: Float[np.ndarray, "prompt two"]

    @classmethod
    def of(cls, subject: Subject, prompts: Prompts) -> "Bench":
        """Run it clean."""
        return cls(subject, prompts, behaviour(subject, prompts))

    def change(self, block: Block) -> Change:
        """What the block's edit changes."""
        with block:
            return behaviour(self.subject, self.prompts) - self.clean

    def draws(self, blocks: Callable[[], Block], params: MambaInduction, label: str) -> Draws:
        """Mean change under each of `causal_draws` random controls; each call gives another."""
        bar = progress(range(params.causal_draws), label, unit="draw")
        return np.stack([self.change(blocks()).mean(axis=0) for _ in bar])

    @property
    def places(self) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"], Int[Tensor, " pair"]]:
        """Prompt, query and earlier occurrence of each copy operation, on the model's device."""
        pairs = self.prompts.pairs
        found = [
            torch.as_tensor(part, device=self.subject.device)
            for part in (pairs.batch, pairs.query, pairs.earlier)
        ]
        return found[0], found[1], found[2]


def behaviour(subject: Subject, prompts: Prompts) -> Float[np.ndarray, "prompt two"]:
    """Loss and accuracy at the copy operations of each prompt."""
    accuracy, loss = copy_behaviour(subject, prompts, batch_size=len(prompts.tokens))
    return np.stack([loss, accuracy], axis=1)


def layer_sets(subject: Subject) -> dict[str, list[int]]:
    """Each layer alone, and all together."""
    single = {f"L{layer}": [layer] for layer in range(subject.n_layers)}
    return single | {"all": list(range(subject.n_layers))}


def described(changed: Change, params: MambaInduction, *, unit: str = "prompts") -> Report:
    """A change of loss and of accuracy, each with its interval."""
    return {
        name: bootstrap(
            changed[:, column],
            STREAMS.rng("effects", params.seed),
            resamples=params.bootstrap_resamples,
            unit=unit,
        ).to_json()
        for name, column in (("loss", LOSS), ("accuracy", ACCURACY))
    }


def compared(
    bench: Bench, changed: Change, random: Draws, params: MambaInduction, *, gain: bool = False
) -> Report:
    """A change, the accuracy that is left, and both changes against those of random controls.

    The test is one-sided: a loss of accuracy is expected, or with `gain` a gain.
    """
    mean = changed.mean(axis=0)
    worse, better = ("below", "above") if gain else ("above", "below")
    left = np.clip(bench.clean[:, ACCURACY] + changed[:, ACCURACY], 0.0, 1.0)

    return described(changed, params) | {
        "left": mean_share(left, unit="prompts").to_json(),
        "random": {
            "loss": against_random(mean[LOSS], random[:, LOSS], direction=worse).to_json(),
            "accuracy": against_random(
                mean[ACCURACY], random[:, ACCURACY], direction=better
            ).to_json(),
        },
    }
