"""Models that people bring: every number is that of eager attention and plain hooks, or it is
absent.
"""

from typing import Any

import pytest

import decoders

IMPORTANT = (
    *("gemma", "gemma2", "gemma3_text", "olmo2", "qwen2", "qwen3", "llama", "mistral", "phi3"),
    *("granite", "cohere2", "opt", "gpt2", "bloom", "falcon", "gpt_oss", "mixtral"),
)


@pytest.mark.parametrize("kind", IMPORTANT)
def test_an_important_family_is_measured_as_plain_code_measures_it(kind: str) -> None:
    row = decoders.measure(kind)
    assert (row.runs, row.note) == ("bridge" if kind in ("bloom", "falcon") else "native", "")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}),
        (
            "granite",
            {"residual_multiplier": 0.22, "logits_scaling": 4.0, "attention_multiplier": 0.3},
        ),
        ("cohere2", {"logit_scale": 0.25}),
        ("mistral", {"sliding_window": 5}),
        ("mistral", {"sliding_window": None}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("qwen2", {"tie_word_embeddings": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_caps_multipliers_and_windows_are_part_of_what_is_measured(
    kind: str, changes: dict[str, Any]
) -> None:
    row = decoders.measure(kind, **changes)
    assert (row.runs, row.note) == ("native", "")


def test_without_a_final_norm_scores_are_right_and_attribution_is_left_out() -> None:
    row = decoders.measure("opt", do_layer_norm_before=False, word_embed_proj_dim=16)
    assert row.runs == "native"
    assert row.note.startswith("no attribution: no final norm")


@pytest.mark.parametrize("kind", ["jamba", "rwkv", "recurrent_gemma"])
def test_other_state_space_models_and_hybrids_are_refused_by_name(kind: str) -> None:
    row = decoders.measure(kind)
    assert row.runs == "refused"
    assert kind in row.note


@pytest.mark.slow
def test_every_type_of_the_installed_transformers_is_as_the_table_says_and_none_is_wrong() -> None:
    rows = [decoders.measure(kind) for kind in decoders.KINDS]
    assert [str(row) for row in rows if row.runs == "WRONG"] == []
    assert decoders.table(rows) == decoders.TABLE.read_text()
