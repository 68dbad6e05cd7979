"""All-head scores against the same model's bare forward without the unembedding, both with fused
attention.
"""

import numpy as np
import torch

from benchmarks.measure import Row, Work, interleaved, peak_growth
from benchmarks.subjects import prompts_of_length, random_subject, trained_subjects
from interp_core.measures.scores import attention_keys, attention_scores
from interp_core.models.subject import Subject
from interp_core.stimuli.prompts import Prompts

TITLE = "All-head scores against the bare forward (pythia-410m's shape, batch 8)"
LENGTHS = (256, 512)
BATCH = 8


def ours(length: int) -> Work:
    """Scores of every head on one batch."""
    subject, prompts = random_subject("pythia-410m"), prompts_of_length(length, BATCH)
    attention_scores(subject, prompts_of_length(33, 1), batch_size=1)
    return lambda: attention_scores(subject, prompts, batch_size=BATCH)


def theirs(length: int) -> Work:
    """The trunk alone."""
    subject, prompts = random_subject("pythia-410m"), prompts_of_length(length, BATCH)
    ids = subject.ids(prompts.tokens)

    @torch.no_grad()
    def forward() -> object:
        return subject.trunk(ids)

    with torch.no_grad():
        subject.trunk(ids[:1, :33])
    return forward


def ours_256() -> Work:
    """For a process of its own."""
    return ours(256)


def theirs_256() -> Work:
    """For a process of its own."""
    return theirs(256)


def ours_512() -> Work:
    """For a process of its own."""
    return ours(512)


def theirs_512() -> Work:
    """For a process of its own."""
    return theirs(512)


def rows(repetitions: int) -> list[Row]:
    """Time and memory at both lengths, and agreement with eager attention."""
    found = []
    for length in LENGTHS:
        seconds = interleaved(
            {"ours": ours(length), "theirs": theirs(length)}, repetitions=repetitions
        )
        a, b = seconds["ours"], seconds["theirs"]
        found.append(Row(f"time, T {length}", f"{a:.2f} s", f"{b:.2f} s", a / b, "<=1.15"))
        a, b = (peak_growth(__name__, f"{side}_{length}") for side in ("ours", "theirs"))
        found.append(
            Row(f"memory growth, T {length}", f"{a:.0f} MiB", f"{b:.0f} MiB", a / b, "<=1.8")
        )
    apart = disagreement(random_subject("pythia-410m"), prompts_of_length(256, 1))
    found.append(Row("largest difference to eager attention", f"{apart:.1e}", "", apart, "<=1e-5"))
    for subject in trained_subjects():
        prompts = prompts_of_length(subject.n_ctx, 8, vocab_size=subject.vocab_size, period=20)
        apart = disagreement(subject, prompts)
        found.append(
            Row(f"the same on {subject.name} (trained)", f"{apart:.1e}", "", apart, "<=1e-5")
        )
    assert all(
        row.met == "yes" for row in found if "difference" in row.what or "trained" in row.what
    )
    return found


def disagreement(subject: Subject, prompts: Prompts) -> float:
    """Largest difference of any score to the mean of the model's own eager patterns."""
    scores = attention_scores(subject, prompts)
    model, pairs = subject.model, prompts.pairs
    model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model.base_model(
            torch.as_tensor(prompts.tokens), output_attentions=True, use_cache=False
        ).attentions
    model.set_attn_implementation("sdpa")
    apart = 0.0
    for layer, pattern in enumerate(patterns):
        for name, key in attention_keys(pairs).items():
            entries = pattern[pairs.batch, :, pairs.query, key].double().numpy()
            means = np.stack(
                [entries[pairs.batch == i].mean(axis=0) for i in range(len(prompts.tokens))]
            )
            apart = max(apart, float(np.abs(means - scores[name][:, layer]).max()))
    return apart
