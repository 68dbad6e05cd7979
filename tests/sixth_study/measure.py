"""Attention to the token before the query: arrays in, named arrays and a flat report out."""

from typing import Any

import numpy as np

from interp_core.measures.scores import attention_scores
from interp_core.models.subject import Subject
from interp_core.statistics.heads import Head
from interp_core.statistics.interval import bootstrap
from interp_core.stimuli.prompts import Vocabulary, repeated_tokens
from sixth_study.params import SixthStudy


def previous_token(
    subject: Subject,
    params: SixthStudy,
    prompts_rng: np.random.Generator,
    interval_rng: np.random.Generator,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Attention in [0, 1] by prompt, layer and head; the best head with its interval over prompts.

    The best head is chosen on one half of the prompts and judged on the other.
    """
    vocabulary = Vocabulary.of(subject.vocab_size, bos=subject.bos, pad=subject.bos)
    prompts = repeated_tokens(
        vocabulary, period=params.period, n_prompts=params.n_prompts, rng=prompts_rng
    )
    scores = attention_scores(subject, prompts, batch_size=params.batch_size)["previous_token"]

    # Of many heads the best one is best partly by luck: other prompts say how good it is.
    half = len(scores) // 2
    means = scores[:half].mean(axis=0, dtype=np.float64)
    best = Head(*(int(index) for index in np.unravel_index(means.argmax(), means.shape)))
    values = scores[half:, best.layer, best.head].astype(np.float64)
    found = bootstrap(values, interval_rng, resamples=params.resamples, unit="prompts")

    # A head that looks everywhere alike gives each of the query's keys the same share.
    chance = float((1 / (prompts.pairs.query + 1)).mean())

    report = {"best": str(best), "attention": found.to_json(), "chance": chance}
    return {"previous_token": scores}, report
