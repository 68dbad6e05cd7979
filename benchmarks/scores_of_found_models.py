"""Types that no table knows, their parts found by running them: all-head scores against the model's
own trunk with fused attention, and against TransformerLens caching every pattern.

Shapes of the smallest public models of three types, weights random. TransformerLens's side computes
logits, as its users' calls do.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.measure import Row, Times, Work, alternated, peak_growth
from benchmarks.subjects import prompts_of_length
from interp_core.loading import subject_of
from interp_core.measures.scores import attention_keys, attention_scores
from interp_core.models.lens import to_transformer_lens
from interp_core.models.native import NativeSubject
from interp_core.stimuli.prompts import Prompts

TITLE = "All-head scores of types whose parts are found by running them, batch 1"
SHORT, LONG = 256, 1024  # tokens
SHAPES: dict[str, dict[str, Any]] = {
    # Qwen3-0.6B, half of its 28 layers: 375 million parameters
    "qwen3": {
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
        "num_hidden_layers": 14,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
    },
    # Gemma 3 270M; every sixth layer looks farther than 512 tokens
    "gemma3_text": {
        "vocab_size": 262_144,
        "num_hidden_layers": 18,
        "hidden_size": 640,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 2048,
        "sliding_window": 512,
        "query_pre_attn_scalar": 256,
    },
    # OLMo 2 1B at half its width, 12 of its 16 layers: 407 million parameters
    "olmo2": {
        "vocab_size": 100_352,
        "num_hidden_layers": 12,
        "hidden_size": 1024,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 4096,
    },
}


@cache
def subject(kind: str) -> NativeSubject:
    """A model of that shape."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        max_position_embeddings=2048,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
        **SHAPES[kind],
    )
    found = subject_of(
        AutoModelForCausalLM.from_config(config, trust_remote_code=False), bos=0, name=kind
    )
    assert isinstance(found, NativeSubject)
    return found


def prompts(length: int) -> Prompts:
    """One prompt."""
    return prompts_of_length(length, 1, vocab_size=4096)


def ours(kind: str, length: int) -> Work:
    """Scores of every head."""
    attention_scores(subject(kind), prompts(33))
    return lambda: attention_scores(subject(kind), prompts(length))


def trunk(kind: str, length: int) -> Work:
    """The model's trunk alone, with the attention that transformers would use."""
    ids = subject(kind).ids(prompts(length).tokens)

    @torch.no_grad()
    def forward() -> object:
        return subject(kind).trunk(ids)

    with torch.no_grad():
        subject(kind).trunk(ids[:, :33])
    return forward


def cached_patterns(kind: str, length: int) -> Work:
    """TransformerLens's run_with_cache, which keeps the patterns alone; then the same entries."""
    lens = to_transformer_lens(subject(kind))
    ids, pairs = torch.as_tensor(prompts(length).tokens), prompts(length).pairs

    @torch.no_grad()
    def work() -> object:
        _, cache = lens.run_with_cache(ids, names_filter=lambda hook: hook.endswith("hook_pattern"))
        return [
            cache[f"blocks.{layer}.attn.hook_pattern"][pairs.batch, :, pairs.query, key].mean(0)
            for layer in range(lens.cfg.n_layers)
            for key in attention_keys(pairs).values()
        ]

    with torch.no_grad():
        lens(ids[:, :33])
    return work


def ours_qwen3() -> Work:
    """For a process of its own."""
    return ours("qwen3", LONG)


def theirs_qwen3() -> Work:
    """For a process of its own."""
    return cached_patterns("qwen3", LONG)


def ours_gemma3_text() -> Work:
    """For a process of its own."""
    return ours("gemma3_text", LONG)


def theirs_gemma3_text() -> Work:
    """For a process of its own."""
    return cached_patterns("gemma3_text", LONG)


def ours_olmo2() -> Work:
    """For a process of its own."""
    return ours("olmo2", LONG)


def theirs_olmo2() -> Work:
    """For a process of its own."""
    return cached_patterns("olmo2", LONG)


def rows(repetitions: int) -> list[Row]:
    """By shape: both comparisons at T 256, the second at T 1024, and its memory there."""
    found = []
    for kind in SHAPES:
        short = {
            "ours": ours(kind, SHORT),
            "trunk": trunk(kind, SHORT),
            "theirs": cached_patterns(kind, SHORT),
        }
        times = alternated(short, repetitions=repetitions)
        found += _compared(f"{kind}, the fused trunk, T {SHORT}", times, "trunk", "<=1.1")
        found += _compared(f"{kind}, cached patterns, T {SHORT}", times, "theirs", ">=1.2")

        # Four times the length is more than four times the work.
        long = {"ours": ours(kind, LONG), "theirs": cached_patterns(kind, LONG)}
        times = alternated(long, repetitions=max(1, repetitions - 1))
        found += _compared(f"{kind}, cached patterns, T {LONG}", times, "theirs", ">=3")

        a, b = (peak_growth(__name__, f"{side}_{kind}") for side in ("ours", "theirs"))
        what = f"{kind}, memory growth of the last"
        found.append(Row(what, f"{a:.0f} MiB", f"{b:.0f} MiB", b / a, ">=10"))
        subject.cache_clear()
    return found


def _compared(what: str, times: Mapping[str, Times], side: str, target: str) -> list[Row]:
    """The least processor times, which other work on the machine disturbs least; then medians by
    the wall's clock.
    """
    found = []
    for clock, at in (("least processor time", target), ("median wall time", "")):
        a, b = (
            times[name].least_processor if at else times[name].median_wall
            for name in ("ours", side)
        )
        ratio = a / b if target.startswith("<=") else b / a
        found.append(Row(f"{what}, {clock}", f"{a:.2f} s", f"{b:.2f} s", ratio, at))
    return found
