"""All-head scores against TransformerLens: caching every pattern, and its detect_head."""

from typing import Any

import torch
from transformer_lens.head_detector import detect_head

from benchmarks.measure import Row, Work, interleaved, peak_growth
from benchmarks.subjects import prompts_of_length, random_subject
from interp_core.measures.scores import attention_keys, attention_scores
from interp_core.models.lens import to_transformer_lens
from interp_core.stimuli.prompts import Prompts

TITLE = "All-head scores against TransformerLens"
PATTERNS = ("previous_token_head", "duplicate_token_head", "induction_head")


def ours(name: str, prompts: Prompts) -> Work:
    """Scores of every head on one batch."""
    subject = random_subject(name)
    attention_scores(subject, prompts_of_length(33, 1))
    return lambda: attention_scores(subject, prompts, batch_size=len(prompts.tokens))


def cached_patterns(name: str, prompts: Prompts) -> Work:
    """run_with_cache, keeping the patterns alone, and the same entries read from them."""
    lens = to_transformer_lens(random_subject(name))
    ids, pairs = torch.as_tensor(prompts.tokens), prompts.pairs

    @torch.no_grad()
    def work() -> object:
        _, cache = lens.run_with_cache(ids, names_filter=lambda hook: hook.endswith("hook_pattern"))
        keys = attention_keys(pairs).values()
        patterns = [
            cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(lens.cfg.n_layers)
        ]
        return [
            pattern[pairs.batch, :, pairs.query, key].mean(0)
            for pattern in patterns
            for key in keys
        ]

    with torch.no_grad():
        lens(ids[:1, :33])
    return work


def detected_heads(name: str, prompts: Prompts) -> Work:
    """detect_head once a pattern, each caching a run, as its users call it."""
    lens: Any = to_transformer_lens(random_subject(name))
    ids = torch.as_tensor(prompts.tokens)
    lens.to_tokens = lambda _: ids  # random weights have no text: the tokens as they are

    @torch.no_grad()
    def work() -> object:
        return [detect_head(lens, "", pattern) for pattern in PATTERNS]

    return work


def ours_70m() -> Work:
    """For a process of its own."""
    return ours("pythia-70m", prompts_of_length(1024, 8))


def theirs_70m() -> Work:
    """For a process of its own."""
    return cached_patterns("pythia-70m", prompts_of_length(1024, 8))


def rows(repetitions: int) -> list[Row]:
    """Two shapes, and three patterns of detect_head."""
    found = []
    for name, length, target in (("pythia-410m", 256, ">=1.2"), ("pythia-70m", 1024, ">=3")):
        prompts = prompts_of_length(length, 8)
        works = {"ours": ours(name, prompts), "theirs": cached_patterns(name, prompts)}
        seconds = interleaved(works, repetitions=repetitions)
        a, b = seconds["ours"], seconds["theirs"]
        found.append(
            Row(
                f"cached patterns, {name}, T {length}, batch 8",
                f"{a:.2f} s",
                f"{b:.2f} s",
                b / a,
                target,
            )
        )
    a, b = peak_growth(__name__, "ours_70m"), peak_growth(__name__, "theirs_70m")
    found.append(Row("memory growth of the last", f"{a:.0f} MiB", f"{b:.0f} MiB", b / a, ">=3"))
    for name, length in (("pythia-410m", 256), ("pythia-70m", 1024)):
        prompts = prompts_of_length(length, 1)
        works = {"ours": ours(name, prompts), "theirs": detected_heads(name, prompts)}
        seconds = interleaved(works, repetitions=repetitions)
        a, b = seconds["ours"], seconds["theirs"]
        what = f"detect_head, three patterns, {name}, T {length}, batch 1"
        found.append(Row(what, f"{a:.2f} s", f"{b:.2f} s", b / a, ">=5"))
    return found
