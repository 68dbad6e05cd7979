"""Every head's effect: one forward a head, the suffix run again, and the first-order estimate."""

import numpy as np
import torch
from scipy.stats import rankdata

from benchmarks.measure import Row, interleaved
from benchmarks.subjects import prompts_of_length, random_subject, trained_subjects
from interp_core.measures.ablation import Head, ablated, ablation_effects, first_order_effects
from interp_core.measures.scores import copy_behaviour
from interp_core.models.sites import Site
from interp_core.models.subject import as_transformer

TITLE = (
    "Effects of ablating every head (pythia-410m's shape, T 256, batch 2; two heads a layer timed, "
    "extrapolated)"
)
TIMED = 2  # heads a layer


def rows(repetitions: int) -> list[Row]:
    """Seconds for all heads of the model, then the estimate's ranks on the trained family."""
    subject, prompts = random_subject("pythia-410m"), prompts_of_length(256, 2)
    sets: list[list[Head]] = [
        [(layer, head)] for layer in range(subject.n_layers) for head in range(TIMED)
    ]
    zeros = torch.zeros(subject.d_head)

    def forward_a_head() -> None:
        for heads in sets[:: len(sets) // 4]:
            with ablated(subject, {(Site(layer, "attn.z"), head): zeros for layer, head in heads}):
                copy_behaviour(subject, prompts)

    works = {
        "forward": forward_a_head,
        "suffix": lambda: ablation_effects(subject, prompts, sets, ablation="zero", batch_size=2),
        "clean": lambda: copy_behaviour(subject, prompts),
        "first order": lambda: first_order_effects(subject, prompts, ablation="zero", batch_size=2),
    }
    works["first order"]()
    seconds = interleaved(works, repetitions=max(1, repetitions // 2))
    every = subject.n_layers * subject.n_heads
    forward = seconds["forward"] / len(sets[:: len(sets) // 4]) * every
    # The clean run that every suffix starts from happens once, however many heads are ablated.
    suffix = seconds["clean"] + (seconds["suffix"] - seconds["clean"]) / len(sets) * every
    estimate = seconds["first order"]
    found = [
        Row(
            "suffix again, against one forward a head",
            f"{suffix:.0f} s",
            f"{forward:.0f} s",
            forward / suffix,
            ">=1.8",
        ),
        Row(
            "first order, against one forward a head",
            f"{estimate:.1f} s",
            f"{forward:.0f} s",
            forward / estimate,
            ">=30",
        ),
    ]
    return found + [ranks(name) for name in range(len(trained_subjects()))]


def ranks(index: int) -> Row:
    """Spearman's rank correlation of estimate and exact effect over a trained model's heads."""
    subject = as_transformer(trained_subjects()[index])
    prompts = prompts_of_length(41, 64, vocab_size=subject.vocab_size, period=20)
    sets: list[list[Head]] = [
        [(layer, head)] for layer in range(subject.n_layers) for head in range(subject.n_heads)
    ]
    effects = ablation_effects(subject, prompts, sets, ablation="mean")
    exact = (effects.loss - effects.clean_loss[:, None]).mean(axis=0)
    estimate = first_order_effects(subject, prompts, ablation="mean").mean(axis=0).ravel()
    signed = float(np.corrcoef(rankdata(estimate), rankdata(exact))[0, 1])
    strong = np.argsort(-exact)[:3].tolist()
    shared = len(set(strong) & set(np.argsort(-estimate)[:3].tolist()))
    return Row(
        f"rank agreement on {subject.name} (mean ablation)",
        f"{shared} of the 3 strongest",
        "",
        signed,
    )
