"""Models that people bring: every number is that of eager attention and plain hooks, or it is
absent.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import decoders
from interp_core.errors import InputError
from interp_core.loading import subject_of
from interp_core.measures.circuits import copying_eigenvalues
from interp_core.models import attention
from interp_core.models.native import NativeSubject

IMPORTANT = (
    *("gemma", "gemma2", "gemma3_text", "olmo2", "qwen2", "qwen3", "llama", "mistral", "phi3"),
    *("granite", "cohere2", "opt", "gpt2", "bloom", "falcon", "gpt_oss", "mixtral"),
)


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The same weights, rounded."""
    return model.to(dtype)


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


@pytest.mark.parametrize("kind", ["rwkv", "xlstm"])
def test_other_state_space_models_and_hybrids_are_refused_by_name(kind: str) -> None:
    row = decoders.measure(kind)
    assert row.runs == "refused"
    assert kind in row.note


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        # keys that a convolution leaves transposed in memory; sinks of each token
        ("inkling_text", "no attribution: what the heads"),
        ("inkling2_text", "no attribution: no final norm"),
        # sinks that eager attention leaves out of the weights it returns
        ("granite_swa", ""),
        # what layers write is scaled by their depth
        ("beam", ""),
        ("minicpm3", ""),
        # keys that another network chooses
        ("deepseek_v32", ""),
        # experts that run several times in a pass
        ("dbrx", ""),
        ("zaya", "no attribution: what the heads"),
        # the context has another name
        ("whisper", ""),
        ("moshi", ""),
        # eyes beside the language model
        ("gemma3", ""),
        ("gemma3n_text", "no attribution: its residual stream is not one vector"),
    ],
)
def test_a_type_that_is_unusual_inside_is_measured_or_leaves_out_what_cannot_be_said(
    kind: str, note: str
) -> None:
    row = decoders.measure(kind)
    assert row.runs == "native"
    assert row.note.startswith(note) if note else row.note == ""


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("recurrent_gemma", {"block_types": ("recurrent", "attention")}, "it is a hybrid"),
        ("jetmoe", {}, "nothing reads what its heads give, side by side"),
        ("musicgen", {}, "it reads several rows of tokens at once"),
        ("diffllama", {}, "it runs a layer's attention more than once"),
    ],
)
def test_what_has_no_heads_of_its_own_is_refused_by_name(
    kind: str, changes: dict[str, Any], reason: str
) -> None:
    row = decoders.measure(kind, **changes)
    assert row.runs == "refused"
    assert kind in row.note
    assert reason in row.note


def test_attention_that_reads_other_memory_is_found_when_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_in_one_run", lambda part: part)
    with pytest.raises(InputError, match=r"with attention run here|attention pattern of layer 0"):
        subject_of(decoders.build("inkling_text"), bos=0)


def test_a_wish_that_never_arrives_is_found_when_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = decoders.build("gemma2", attn_logit_softcapping=0.1)
    monkeypatch.setattr(attention, "_capped", lambda scores, softcap: scores)
    with pytest.raises(InputError, match="with attention run here it says something else"):
        subject_of(model, bos=0)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {}),
        ("gemma3_text", {}),
        ("llama", {}),
        ("llama", {"initializer_range": 1.0}),
        ("mistral", {}),
        ("qwen3", {}),
        ("granite", {"residual_multiplier": 0.22}),
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("opt", {}),
        ("olmo2", {"num_hidden_layers": 12}),
    ],
)
def test_in_bfloat16_the_same_parts_are_found(kind: str, changes: dict[str, Any]) -> None:
    """The blocks' ends are rounded more coarsely than what is looked for may be small."""
    full = subject_of(decoders.build(kind, **changes), bos=0)
    model = in_dtype(decoders.build(kind, **changes), torch.bfloat16)
    coarse = subject_of(model, bos=0)

    assert isinstance(full, NativeSubject)
    assert isinstance(coarse, NativeSubject)
    assert coarse.why_no_attribution() is None
    assert coarse.why_no_copying() is None
    for one, two in zip(full.anatomy.layers, coarse.anatomy.layers, strict=True):
        assert one.attn_out is not None
        assert two.attn_out is not None
        assert two.attn_out.factor == pytest.approx(one.attn_out.factor, rel=0.01)
        assert two.carry == one.carry
        assert (two.mlp_out is None) == (one.mlp_out is None)
        assert (two.post_norm is None) == (one.post_norm is None)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "olmo2"])
def test_copying_is_read_where_queries_and_keys_are_normed(kind: str) -> None:
    """Against the whole [vocab, vocab] matrix, each gain taken from the modules by their names."""
    model: Any = decoders.build(kind)
    subject = subject_of(decoders.build(kind), bos=0)
    assert isinstance(subject, NativeSubject)

    def gain(norm: Any) -> Tensor:
        weight = norm.weight.detach().double()
        return 1 + weight if kind == "gemma3_text" else weight

    def matrix(module: Any) -> Tensor:
        return module.weight.detach().double()

    W_E, W_U = matrix(model.get_input_embeddings()), matrix(model.get_output_embeddings())
    expected = []
    for block in model.model.layers:
        attention, width = block.self_attn, subject.d_head
        values, out = matrix(attention.v_proj), matrix(attention.o_proj)
        if kind != "olmo2":
            values = values * gain(block.input_layernorm)
        if kind != "qwen3":
            out = gain(block.post_attention_layernorm)[:, None] * out
        for head in range(subject.n_heads):
            read = values.unflatten(0, (-1, width))[head // 2]
            written = out.unflatten(1, (-1, width))[:, head]
            whole = W_E @ read.T @ written.T @ (W_U * gain(model.model.norm)).T
            eigenvalues = torch.linalg.eigvals(whole)
            expected.append(float(eigenvalues.sum().real / eigenvalues.abs().sum()))
    found = copying_eigenvalues(subject)
    np.testing.assert_allclose(found.reshape(-1), expected, atol=1e-3)
    with pytest.raises(InputError, match="a norm stands behind its queries and keys"):
        subject.head_weights(0)


class Gated(nn.Module):
    """A llama's attention, and what its heads write times what another map makes of its input."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.attention = attention
        self.gate = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        written, pattern = self.attention(hidden_states=hidden_states, **kwargs)
        return written * (1 + 0.2 * self.gate(hidden_states).tanh()), pattern


NOT_ADDED = {
    torch.float32: "what the heads of layer 0 write is not simply added to the residual stream",
    torch.bfloat16: "whether what the heads of layer 0 write is simply added to the residual "
    "stream cannot be told in bfloat16: --dtype float32",
}


@pytest.mark.parametrize("dtype", list(NOT_ADDED))
def test_what_heads_write_and_a_gate_multiplies_is_not_attributed(dtype: torch.dtype) -> None:
    model: Any = decoders.build("llama")
    torch.manual_seed(0)
    for block in model.model.layers:
        block.self_attn = Gated(block.self_attn, model.config.hidden_size)

    subject = subject_of(model.to(dtype), bos=0)
    assert isinstance(subject, NativeSubject)
    assert subject.why_no_attribution() == NOT_ADDED[dtype]


@pytest.mark.parametrize("dtype", list(NOT_ADDED))
def test_heads_in_another_order_than_their_matrices_leave_attribution_out(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    as_they_are = NativeSubject.out_weights
    monkeypatch.setattr(
        NativeSubject, "out_weights", lambda subject, layer: as_they_are(subject, layer).flip(0)
    )
    subject = subject_of(in_dtype(decoders.build("llama"), dtype), bos=0)
    assert isinstance(subject, NativeSubject)
    assert subject.why_no_attribution() == NOT_ADDED[dtype]


@pytest.mark.slow
def test_every_type_of_the_installed_transformers_is_as_the_table_says_and_none_is_wrong() -> None:
    rows = [decoders.measure(kind) for kind in decoders.KINDS]
    assert sum(row.runs == "native" for row in rows) >= 151
    assert [str(row) for row in rows if row.runs == "WRONG"] == []
    assert decoders.table(rows) == decoders.TABLE.read_text()
