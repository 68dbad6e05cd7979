"""What trainings of language models are watched by: the model as a subject, and held-out text."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp_core.errors import InputError
from interp_core.stimuli.corpus import Corpus

if TYPE_CHECKING:
    from interp_core.models.subject import Subject
    from interp_core.training.loop import Moment


@contextmanager
def in_training(moment: "Moment") -> Iterator["Subject"]:
    """The model of a moment as a subject; after the block its weights can be trained again."""
    from interp_core.loading import subject_of

    model: Any = moment.model
    subject = subject_of(model, name="model in training", bos=0, digest="in training")
    try:
        yield subject
    finally:
        model.requires_grad_(requires_grad=True)


def check_held_out(corpus: Corpus, *, longest: int) -> None:
    """InputError when the held-out text is shorter than the longest piece of it."""
    if len(corpus.validation) < longest + 1:
        raise InputError(
            f"{corpus.folder}: held-out text has only {len(corpus.validation)} tokens; use "
            "more text"
        )


@dataclass(frozen=True)
class HeldOut:
    """Pieces of held-out text."""

    ids: Int[Tensor, "row position"]

    @classmethod
    def drawn(cls, corpus: Corpus, length: int, n: int, rng: np.random.Generator) -> "HeldOut":
        """`n` pieces of this length at random places."""
        return cls(torch.from_numpy(pieces_of(corpus.validation, length, n, rng)))

    def loss(self, subject: "Subject") -> float:
        """Nats a token."""
        ids = self.ids.to(subject.device)
        logits = subject.logits(ids)[:, :-1].float().flatten(0, 1)
        return float(nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))


def pieces_of(tokens: np.ndarray, length: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` pieces of a token stream at random places."""
    starts = rng.integers(len(tokens) - length + 1, size=n)
    return tokens[starts[:, None] + np.arange(length)].astype(np.int64)
