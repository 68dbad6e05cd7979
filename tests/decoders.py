"""Every causal language model type of the installed transformers, small, and the same numbers by
plain code.

`python tests/decoders.py` measures all of them and writes tests/decoders.md. What is compared with:
eager attention, given the identity as values so that it returns what it multiplies values by; hooks
on the output projection by its name; and for attribution the gradient through the model's own code,
everything cut but the residual stream and every norm at the divisor it had.
"""

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from interp_core.errors import InputError
from interp_core.loading import subject_of
from interp_core.mamba.subject import MambaSubject
from interp_core.measures.ablation import ablation_effects
from interp_core.measures.scores import attention_keys, copy_behaviour, score_heads
from interp_core.models.native import NativeSubject
from interp_core.models.subject import Transformer
from interp_core.stimuli.prompts import Prompts, Vocabulary, repeated_tokens

TABLE = Path(__file__).parent / "decoders.md"
KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCAB, LARGEST = 96, 3_000_000  # ids, and parameters of what still counts as small

# A size for every name that configs have for one; what a config does not have is left out.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "num_layers"), 3
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads"), 4
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "d_ff", "decoder_ffn_dim", "ffn_dim", "ffn_hidden_size"),
        64,
    ),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    **dict.fromkeys(("dropout", "attention_dropout", "hidden_dropout"), 0.0),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "d_kv", "head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "encoder_layers"), 1),
    **dict.fromkeys(("sliding_window", "attention_window"), 8),
    "vocab_size": VOCAB,
    "num_key_value_heads": 2,
    "is_decoder": True,
}

LAYERS = 3
_FULL = {"layer_types": ["full_attention"] * LAYERS}
_MAMBA_2 = {"mamba_n_heads": 4, "mamba_d_head": 16}
_WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
_SEEING = {**_WIDTHS, "num_hidden_layers": 1}
_BYTES = {**_SEEING, "vocab_size": VOCAB}
_OWN_CACHE = {
    **dict.fromkeys(("hidden_size_per_layer_input", "vocab_size_per_layer_input"), 0),
    **dict.fromkeys(("num_hidden_layers", "num_kv_shared_layers"), LAYERS),
}
_SLIDING = {
    **{f"swa_{name}_head_dim": size for name, size in (("qk_nope", 8), ("v", 8), ("qk_rope", 4))},
    **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 4),
    **dict.fromkeys(("swa_q_lora_rank", "swa_kv_lora_rank"), 16),
    "swa_head_dim": 12,
    "index_head_dim": 8,
    "index_n_heads": 4,
}
_INDEXED = {
    "layer_types": ["indexed_attention"] * LAYERS,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "hc_count": 2,
    "hc_lowrank": 8,
}
_PER_LAYER = {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8}

# What a type needs beside sizes to be built small.
OF_TYPE: dict[str, dict[str, Any]] = {
    "blt": {
        "encoder_hash_byte_group_vocab": 50,
        "patcher_config": _BYTES,
        "encoder_config": {**_BYTES, "hidden_size_global": 32},
        "decoder_config": {**_BYTES, "hidden_size_global": 32},
        "global_config": _SEEING,
    },
    "cohere_compass_text": {
        **_FULL,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "cpmant": {"dim_head": 8, "dim_ff": 64, "prompt_length": 4, "segment_types": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 64},
    },
    "dots1": {"n_shared_experts": 1},
    "gemma3n": {**_PER_LAYER, "num_kv_shared_layers": 0, "laurel_rank": 4},
    "gemma3n_text": {**_PER_LAYER, "num_kv_shared_layers": 0, "laurel_rank": 4},
    "gemma4": _PER_LAYER,
    "gemma4_text": _PER_LAYER,
    "dots3_note": _SLIDING,
    "dots3_note_text": _SLIDING,
    "gemma4_assistant": _OWN_CACHE,
    "git": {"vision_config": {**_SEEING, "image_size": 16, "patch_size": 8}},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 8},
    "mamba2": {"head_dim": 16, "n_groups": 1},
    "phi4_multimodal": {
        "vision_config": {**_SEEING, "image_size": 28, "crop_size": 28},
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_attention_heads": 4,
            "num_blocks": 1,
            "ext_pw_out_channel": 32,
            "nemo_conv_channels": 32,
            "depthwise_separable_out_channel": 32,
        },
    },
    "reformer": {
        "axial_pos_shape": (8, 8),
        "axial_pos_embds_dim": (8, 24),
        "attention_head_size": 8,
        "feed_forward_size": 64,
        "attn_layers": ("local",) * LAYERS,
        "local_attn_chunk_length": 8,
    },
    "roc_bert": {
        "shape_vocab_size": VOCAB,
        "shape_embed_dim": 8,
        "pronunciation_vocab_size": VOCAB,
        "pronunciation_embed_dim": 8,
    },
    "xmod": {"languages": ("en_XX",), "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}

# What a type's default config cannot do without.
BORN_WITH: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {"text_config": _OWN_CACHE},
}

# Types that mix layers with and without attention. They are measured with attention in each; one
# that really mixes is refused.
EVERYWHERE: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _FULL,
    "bamba": {"attn_layer_indices": list(range(LAYERS)), **_MAMBA_2},
    "granitemoehybrid": {**_FULL, **_MAMBA_2},
    "jamba": {"attn_layer_period": 1, "attn_layer_offset": 0},
    "kimi_linear": {**_FULL, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": _FULL,
    "lfm3": _FULL,
    "minimax": _FULL,
    "nemotron_h": {"layers_block_type": ["full_attention"] * LAYERS},
    "qwen3_5": _FULL,
    "qwen3_5_moe": _FULL,
    "qwen3_5_moe_text": _FULL,
    "qwen3_5_text": _FULL,
    "qwen3_next": _FULL,
    "qwen4_exp": _INDEXED,
    "qwen4_exp_text": _INDEXED,
    "recurrent_gemma": {"block_types": ("attention",)},
    "zamba": {"layers_block_type": ["hybrid"] * LAYERS},
    "zamba2": {"layers_block_type": ["hybrid"] * LAYERS, **_MAMBA_2},
}


def config_of(kind: str, **changes: Any) -> Any:
    """The type's default config with small sizes: what from_pretrained would build a model from.

    Of a type with several parts that is the text's, where the language model is a class of its own.
    """
    changes = OF_TYPE.get(kind, {}) | EVERYWHERE.get(kind, {}) | changes
    whole = AutoConfig.for_model(kind, **BORN_WITH.get(kind, {}))
    if kind.startswith("musicgen"):
        return _sized(whole.decoder, changes)

    text = whole.get_text_config()
    if text is whole or _class_of(whole).config_class is not type(whole):
        return _sized(text, changes)

    if kind == "gemma3n":
        return _sized(text, changes)  # its eyes are another package's

    parts = {
        name: _sized(part, {})
        for name in whole.sub_configs
        if (part := getattr(whole, name)) is not None
    }
    beside = {name: value for name, value in changes.items() if name in parts}
    of_text = {name: value for name, value in changes.items() if name not in parts}
    return type(whole)(**{**parts, **beside, "text_config": _sized(text, of_text)})


def _sized(config: Any, changes: dict[str, Any]) -> Any:
    known = set(config.to_dict()) | set(getattr(type(config), "attribute_map", {}))
    sizes = dict(SIZES)
    if "qk_rope_head_dim" in known:
        # Multi-head latent attention: the rotary part is a head's, and keys are not shared.
        sizes |= {"head_dim": 4, "num_key_value_heads": 4}
    return type(config)(
        **{
            name: value
            for name, value in (sizes | changes).items()
            if name in known or name in changes
        }
    )


def _class_of(config: Any) -> Any:
    """The class of causal language models that a config's type stands for."""
    known: Any = AutoModelForCausalLM._model_mapping
    return known.get(type(config), None)


def build(
    kind: str, seed: int = 0, attention: str | None = None, **changes: Any
) -> PreTrainedModel:
    """A model of the type with random weights, its gains and biases shaken.

    ValueError when it is not small.
    """
    config = config_of(kind, **changes)
    of_kind = _class_of(config) or _class_of(AutoConfig.for_model(kind))
    with torch.device("meta"):
        size = sum(p.numel() for p in of_kind._from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters at the smallest")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = of_kind._from_config(
            config, dtype=torch.float32, attn_implementation=attention
        ).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.15 * torch.randn_like(parameter)
    return model


def prompts_of_all(seed: int = 0) -> Prompts:
    """BOS and two copies of twelve distinct ids."""
    vocabulary = Vocabulary.of(VOCAB, bos=0, pad=0)
    return repeated_tokens(vocabulary, period=12, n_prompts=4, rng=np.random.default_rng(seed))


@dataclass(frozen=True)
class Plain:
    """What plain code finds."""

    scores: dict[str, np.ndarray]  # [prompt, layer, head]
    loss: np.ndarray
    ablated: np.ndarray  # loss with head 1 of layer 1 at zero


OUT = re.compile(r"(o_proj|out_proj|c_proj|dense|out_lin|linear_out|wo|o)(\.linear)?$")


@torch.no_grad()
def plain(model: PreTrainedModel, prompts: Prompts, out: list[nn.Module], heads: int) -> Plain:
    """The numbers by eager attention and hooks; `out` are the output projections, by layer."""
    pairs, ids = prompts.pairs, torch.as_tensor(prompts.tokens)
    with patterns_of(model) as seen:
        result = model(input_ids=ids, output_attentions=not seen.registered, use_cache=False)

    patterns = torch.stack(seen.patterns or list(result.attentions), dim=1).double().numpy()
    scores = {}
    for name, key in attention_keys(pairs).items():
        entries = patterns[pairs.batch, :, :, pairs.query, key]
        scores[name] = np.stack([entries[pairs.batch == i].mean(axis=0) for i in range(len(ids))])

    def first_head(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        z = args[0].clone()
        width = z.shape[-1] // heads
        z[..., width : 2 * width] = 0
        return (z, *args[1:])

    hook = out[1].register_forward_pre_hook(first_head)
    changed = model(input_ids=ids, use_cache=False).logits
    hook.remove()
    return Plain(scores, _loss(result.logits, prompts), _loss(changed, prompts))


@dataclass(frozen=True)
class Seen:
    """The patterns of a run, in the order of its layers."""

    registered: bool  # whether the model's file has the plain attention that the registry replaces
    patterns: list[Tensor] = field(default_factory=list)  # [prompt, head, query, key]


@contextmanager
def patterns_of(model: nn.Module) -> Iterator[Seen]:
    """Inside the block, what the model's own eager attention multiplies values by.

    What it returns as weights is not always that: a sink may be taken off afterwards.
    """
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    plain = {file: vars(file).get("eager_attention_forward") for file in files}
    seen = Seen(registered=any(plain.values()))

    def given_identity(eager: Any) -> Any:
        def attention(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            identity = torch.eye(value.shape[2]).expand(*value.shape[:2], -1, -1)
            pattern, _ = eager(module, query, key, identity, *args, **kwargs)
            seen.patterns.append(pattern.transpose(1, 2))
            return eager(module, query, key, value, *args, **kwargs)

        return attention

    try:
        for file, eager in plain.items():
            if eager is not None:
                vars(file)["eager_attention_forward"] = given_identity(eager)
        yield seen
    finally:
        for file, eager in plain.items():
            if eager is not None:
                vars(file)["eager_attention_forward"] = eager


def _loss(logits: Tensor, prompts: Prompts) -> np.ndarray:
    pairs = prompts.pairs
    nats = nn.functional.cross_entropy(
        logits[pairs.batch, pairs.query].double(), torch.as_tensor(pairs.target), reduction="none"
    ).numpy()
    return np.array([nats[pairs.batch == i].mean() for i in range(len(prompts.tokens))])


def attribution(
    model: PreTrainedModel, prompts: Prompts, out: list[nn.Module], heads: int
) -> np.ndarray:
    """Logit of the target above the mean that each head writes [prompt, layer, head], by gradient.

    What heads write goes on along the residual stream alone: all that reads it is cut, norms are
    the linear maps that they were, and a cap on logits is taken off.
    """
    config = model.config.get_text_config()
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if getattr(config, name, None) is not None:
            setattr(config, name, 1e6)

    leaves: dict[nn.Module, Tensor] = {}

    def leaf(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        leaves[module] = args[0].detach().requires_grad_()
        return (leaves[module], *args[1:])

    pairs = prompts.pairs
    with ExitStack() as stack:
        for module in _cut(model, out):
            stack.callback(module.register_forward_hook(_detached).remove)
        for module in model.modules():
            if _is_norm(module):
                stack.callback(module.register_forward_hook(_linear).remove)
        for module in out:
            stack.callback(module.register_forward_pre_hook(leaf).remove)

        logits = model(input_ids=torch.as_tensor(prompts.tokens), use_cache=False).logits.double()
        above = logits[pairs.batch, pairs.query] - logits[pairs.batch, pairs.query].mean(
            dim=-1, keepdim=True
        )
        above[torch.arange(len(pairs)), pairs.target].sum().backward()

    found = []
    for module in out:
        z, slope = leaves[module].detach().double(), leaves[module].grad
        assert slope is not None
        by_head = (z * slope.double()).unflatten(-1, (heads, -1)).sum(-1)
        values = by_head[pairs.batch, pairs.query].numpy()
        found.append(
            np.stack([values[pairs.batch == i].mean(0) for i in range(len(prompts.tokens))])
        )
    return np.stack(found, axis=1)


def _cut(model: nn.Module, out: list[nn.Module]) -> list[nn.Module]:
    """Modules of blocks that compute something of their own, but what heads write goes through."""
    blocks = max(
        (module for module in model.modules() if isinstance(module, nn.ModuleList)),
        key=lambda module: len(list(module.modules())),
    )
    idle = (nn.Identity, nn.Dropout)
    return [
        module
        for block in blocks
        for module in block.modules()
        if (not list(module.children()) or list(module.parameters(recurse=False)))
        and not set(out) & set(module.modules())
        and not _is_norm(module)
        and not isinstance(module, idle)
    ]


def _is_norm(module: nn.Module) -> bool:
    return re.search(r"Norm|LN", type(module).__name__) is not None and not list(module.children())


def _detached(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return tree_map(lambda part: part.detach() if isinstance(part, Tensor) else part, output)


def _linear(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
    """The map that the norm was at these positions: what it gave, less what it gives for nothing,
    over what it got.
    """
    x = args[0]
    with torch.no_grad():
        centres = torch.allclose(module.forward(x + 7.0), y, atol=1e-4)
        bias = module.forward(torch.zeros_like(x)).double()
    middle = x.double().mean(dim=-1, keepdim=True) if centres else 0.0
    centred = x.double() - middle
    # Nothing in, nothing out: a padding id's embedding is zero.
    gain = torch.where(centred == 0, 0.0, (y.double() - bias) / centred).detach()
    return (gain * centred + bias).to(y.dtype)


@dataclass(frozen=True)
class Row:
    """What became of one type."""

    kind: str
    runs: str  # native, bridge, mamba, refused, not built, WRONG
    note: str

    def __str__(self) -> str:
        return f"| {self.kind} | {self.runs} | {self.note} |"


def measure(kind: str, **changes: Any) -> Row:
    """Build the type, and compare all that is measured of it with plain code."""
    try:
        model = build(kind, **changes)
    except Exception as problem:  # noqa: BLE001
        # Whatever keeps a type from being built small is the note of its row.
        return Row(kind, "not built", _line(problem))

    prompts = prompts_of_all()
    # Eager from the start: a type that does not call the registry cannot be switched later.
    reference = build(kind, attention="eager", **changes)
    try:
        subject = subject_of(model, bos=0, name=kind)
    except InputError as problem:
        return Row(kind, "refused", _line(problem))
    except Exception as problem:  # noqa: BLE001
        return Row(kind, "WRONG", _line(problem))
    if isinstance(subject, MambaSubject):
        return Row(kind, "mamba", "channels, no heads")
    assert isinstance(subject, Transformer)
    try:
        return Row(kind, *_compared(subject, reference, prompts))
    except Exception as problem:  # noqa: BLE001
        # A type that is taken and then fails is as wrong as one with other numbers.
        return Row(kind, "WRONG", _line(problem))


def _compared(
    subject: Transformer, reference: PreTrainedModel, prompts: Prompts
) -> tuple[str, str]:
    runs = "native" if isinstance(subject, NativeSubject) else "bridge"
    keys = attention_keys(prompts.pairs)
    ours = score_heads(
        subject, prompts.tokens, prompts.pairs, keys, behaviour=True, contributions=True
    )
    effects = ablation_effects(subject, prompts, [[(1, 1)]], ablation="zero")
    _, loss = copy_behaviour(subject, prompts)

    out = [reference.get_submodule(path) for path in _out_paths(subject)]
    without = subject.why_no_attribution()
    truth = plain(reference, prompts, out, subject.n_heads)
    wrong = [
        name for name in keys if not np.allclose(ours.heads[name], truth.scores[name], atol=1e-5)
    ]
    if not np.allclose(loss, truth.loss, atol=1e-5, rtol=1e-5):
        wrong.append("loss")
    if not np.allclose(effects.loss[:, 0], truth.ablated, atol=1e-5, rtol=1e-5):
        wrong.append("ablation")

    given = ours.heads.get("direct_logit_attribution")
    if given is not None:
        expected = attribution(reference, prompts, out, subject.n_heads)
        size = max(1.0, float(np.abs(expected).max()))
        if not np.allclose(given, expected, atol=1e-4 * size):
            wrong.append("attribution")
    if wrong:
        return "WRONG", ", ".join(wrong)

    notes = ["with attention in every layer"] if subject.name in EVERYWHERE else []
    notes += [f"no attribution: {without}"] if without else []
    return runs, "; ".join(notes)


def _out_paths(subject: Transformer) -> list[str]:
    """The output projections, by name alone: the last module of a block's attention that is called
    like one.
    """
    model = subject.model
    if not isinstance(subject, NativeSubject):
        model = build(subject.name)
    names = [
        name
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None
    ]
    found: dict[str, str] = {}
    for name in names:
        at = re.match(r"(.*?\.\d+)\.(?=.*(?:att|temporal|mixer))", name)
        if (
            at is not None
            and OUT.search(name)
            and not re.search(r"mlp|cross|encoder_attn|mamba|experts|vision|audio|embed", name)
        ):
            found[at[1]] = name
    return list(found.values())


def _line(problem: Exception) -> str:
    text = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
    return text.replace("|", "/")[:140]


def table(rows: list[Row]) -> str:
    """The file's text."""
    counts = {
        runs: sum(row.runs == runs for row in rows)
        for runs in dict.fromkeys(row.runs for row in rows)
    }
    summary = ", ".join(
        f"{count} {runs}" for runs, count in sorted(counts.items(), key=lambda item: -item[1])
    )
    head = f"# Decoders\n\nWritten by `python tests/decoders.py`: {len(rows)} types; {summary}.\n\n"
    return head + "| type | runs | note |\n|---|---|---|\n" + "\n".join(map(str, rows)) + "\n"


def main(kinds: list[str]) -> None:
    """Measure and print; write the table when no type was named."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for kind in kinds or KINDS:
        rows.append(measure(kind))
        print(rows[-1], flush=True)
    if not kinds:
        TABLE.write_text(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
