"""All-head scores in one pass against one pass a layer, the usual way to save memory."""

from typing import Any

import torch

from benchmarks.measure import Row, Work, interleaved
from benchmarks.subjects import prompts_of_length, random_subject
from interp_core.measures.scores import attention_keys, attention_scores
from interp_core.models.lens import to_transformer_lens
from interp_core.stimuli.prompts import Prompts

TITLE = "One pass against one pass a layer (pythia-410m's shape, 24 layers, T 256)"


def pass_a_layer(prompts: Prompts) -> Work:
    """A whole forward with eager attention for each layer, keeping that layer's pattern alone."""
    subject = random_subject("pythia-410m")
    lens = to_transformer_lens(subject)
    ids, pairs = torch.as_tensor(prompts.tokens), prompts.pairs

    @torch.no_grad()
    def work() -> object:
        found: list[Any] = []
        for layer in range(subject.n_layers):
            site = f"blocks.{layer}.attn.hook_pattern"
            _, cache = lens.run_with_cache(ids, names_filter=site)
            found += [
                cache[site][pairs.batch, :, pairs.query, key].mean(0)
                for key in attention_keys(pairs).values()
            ]
        return found

    return work


def rows(repetitions: int) -> list[Row]:
    """One comparison, at batch 2 (the ratio does not depend on it)."""
    prompts = prompts_of_length(256, 2)
    subject = random_subject("pythia-410m")
    attention_scores(subject, prompts)
    works = {"ours": lambda: attention_scores(subject, prompts), "theirs": pass_a_layer(prompts)}
    seconds = interleaved(works, repetitions=max(1, repetitions // 2))
    a, b = seconds["ours"], seconds["theirs"]
    return [Row("batch 2", f"{a:.2f} s", f"{b:.1f} s", b / a, ">=20")]
