"""Every causal language model type of the installed transformers, small, and the same numbers by
plain code.

`python tests/decoders.py` measures all of them and writes tests/decoders.md. What is compared with:
eager attention, hooks on the output projection by its name, a norm's gain and divisor as its output
over its input.
"""

import logging
import re
import sys
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
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


def config_of(kind: str, **changes: Any) -> Any:
    """The type's default config with small sizes; of a type with several parts, its text's."""
    text = AutoConfig.for_model(kind).get_text_config()
    known = set(text.to_dict()) | set(getattr(type(text), "attribute_map", {}))
    sizes = dict(SIZES)
    if "qk_rope_head_dim" in known:
        # Multi-head latent attention: the rotary part is a head's, and keys are not shared.
        sizes |= {"head_dim": 4, "num_key_value_heads": 4}
    return type(text)(
        **{
            name: value
            for name, value in (sizes | changes).items()
            if name in known or name in changes
        }
    )


def build(
    kind: str, seed: int = 0, attention: str | None = None, **changes: Any
) -> PreTrainedModel:
    """A model of the type with random weights, its gains and biases shaken.

    ValueError when it is not small.
    """
    config = config_of(kind, **changes)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters at the smallest")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
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
    """What plain code finds; attribution is None where the names say too little."""

    scores: dict[str, np.ndarray]  # [prompt, layer, head]
    loss: np.ndarray
    attribution: np.ndarray | None
    ablated: np.ndarray  # loss with head 1 of layer 1 at zero


OUT = re.compile(r"(o_proj|out_proj|c_proj|dense|out_lin|linear_out|wo|o)$")


@torch.no_grad()
def plain(
    model: PreTrainedModel,
    prompts: Prompts,
    out: list[nn.Module],
    heads: int,
    *,
    attributed: bool = True,
) -> Plain:
    """The numbers by eager attention and hooks; `out` are the output projections, by layer."""
    pairs, ids = prompts.pairs, torch.as_tensor(prompts.tokens)
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(given, Tensor) and isinstance(output, Tensor):
            seen[module] = given, output

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        result = model(input_ids=ids, output_attentions=True, use_cache=False)

    patterns = (
        torch.stack([pattern for pattern in result.attentions if pattern is not None], dim=1)
        .double()
        .numpy()
    )
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
    attribution = (
        _attribution(model, prompts, result.logits, out, seen, heads) if attributed else None
    )
    return Plain(scores, _loss(result.logits, prompts), attribution, _loss(changed, prompts))


def _loss(logits: Tensor, prompts: Prompts) -> np.ndarray:
    pairs = prompts.pairs
    nats = nn.functional.cross_entropy(
        logits[pairs.batch, pairs.query].double(), torch.as_tensor(pairs.target), reduction="none"
    ).numpy()
    return np.array([nats[pairs.batch == i].mean() for i in range(len(prompts.tokens))])


def _attribution(
    model: PreTrainedModel,
    prompts: Prompts,
    logits: Tensor,
    out: list[nn.Module],
    seen: dict[nn.Module, tuple[Tensor, Tensor]],
    heads: int,
) -> np.ndarray | None:
    """Logit of the target above the mean that each head writes, every norm being its output over
    its input.
    """
    head: Any = model.get_output_embeddings()
    blocks = max(
        (m for m in model.modules() if isinstance(m, nn.ModuleList)),
        key=lambda m: len(list(m.modules())),
    )
    inside = {module for block in blocks for module in block.modules()}
    config = model.config.get_text_config()
    finals = [
        m
        for m in seen
        if m not in inside and re.search("Norm", type(m).__name__) and _reads_stream(seen[m])
    ]
    if not finals:
        return None

    r, y = seen[finals[-1]]
    final = _linear_part(finals[-1], r, y)
    scale = getattr(config, "logit_scale", None) or 1.0 / getattr(config, "logits_scaling", 1.0)
    toward = head.weight.double().T * float(scale)
    toward = toward - toward.mean(dim=1, keepdim=True)
    pairs = prompts.pairs

    found = []
    for module in out:
        z, written = seen[module]
        weight: Any = module.weight
        matrix = weight if isinstance(module, nn.Linear) else weight.T
        by_head = torch.einsum(
            "bphe,dhe->hbpd",
            z.unflatten(-1, (heads, -1)).double(),
            matrix.double().unflatten(-1, (heads, -1)),
        )
        post = [m for m, (given, _) in seen.items() if m in inside and _norm_of(m, given, written)]
        if post:
            by_head = _linear_part(post[0], *seen[post[0]])(by_head)
        by_head = by_head * float(getattr(config, "residual_multiplier", 1.0))
        values = torch.einsum(
            "hpd,dp->ph", final(by_head)[:, pairs.batch, pairs.query], toward[:, pairs.target]
        )
        found.append(
            np.stack([values[pairs.batch == i].mean(0).numpy() for i in range(len(prompts.tokens))])
        )
    return np.stack(found, axis=1)


def _norm_of(module: nn.Module, given: Tensor, written: Tensor) -> bool:
    return (
        "Norm" in type(module).__name__
        and given.shape == written.shape
        and torch.equal(given, written)
    )


def _reads_stream(call: tuple[Tensor, Tensor]) -> bool:
    return call[0].ndim == 3 and call[0].shape == call[1].shape


def _linear_part(norm: Any, x: Tensor, y: Tensor) -> Any:
    """The map that the norm was at these positions: what it gave, less what it gives for nothing,
    over what it got.
    """
    centres = torch.allclose(norm(x + 7.0), y, atol=1e-4)
    bias = norm(torch.zeros_like(x)).double()
    middle = x.double().mean(dim=-1, keepdim=True) if centres else 0.0
    gain = (y.double() - bias) / (x.double() - middle)
    return lambda vectors: (
        gain * (vectors - (vectors.mean(dim=-1, keepdim=True) if centres else 0.0))
    )


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
        with torch.no_grad():
            model(input_ids=torch.arange(1, 25)[None], use_cache=False)
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

    paths = _out_paths(subject)
    without = subject.why_no_attribution()
    truth = plain(
        reference,
        prompts,
        [reference.get_submodule(path) for path in paths],
        subject.n_heads,
        attributed=not without,
    )
    wrong = [
        name for name in keys if not np.allclose(ours.heads[name], truth.scores[name], atol=1e-5)
    ]
    if not np.allclose(loss, truth.loss, atol=1e-5, rtol=1e-5):
        wrong.append("loss")
    if not np.allclose(effects.loss[:, 0], truth.ablated, atol=1e-5, rtol=1e-5):
        wrong.append("ablation")

    given = ours.heads.get("direct_logit_attribution")
    if given is not None and truth.attribution is not None:
        size = max(1.0, float(np.abs(truth.attribution).max()))
        if not np.allclose(given, truth.attribution, atol=1e-4 * size):
            wrong.append("attribution")
    notes = [f"no attribution: {without}"] if without else []
    if without is None and truth.attribution is None:
        notes.append("attribution is compared with nothing")
    return ("WRONG", ", ".join(wrong)) if wrong else (runs, "; ".join(notes))


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
            and not re.search(r"mlp|cross|encoder_attn|mamba|experts", name)
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
