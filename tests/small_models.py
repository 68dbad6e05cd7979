"""Real models of every family, small enough for a test: random weights, large enough to attend to
something.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from interp_core.stimuli.prompts import Prompts, Vocabulary, repeated_tokens

VOCAB, WIDTH, LAYERS, HEADS, CONTEXT = 96, 32, 3, 4, 64
VOCABULARY = Vocabulary.of(VOCAB, bos=0, pad=0)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_SCAN: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "state_size": 6,
    "initializer_range": 0.3,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
}
_STD: dict[str, Any] = {"initializer_range": 0.3, "intermediate_size": 64}


def gpt_neox(**changes: Any) -> PreTrainedModel:
    """Rotary positions on a quarter of each head, attention and MLP in parallel (Pythia)."""
    return GPTNeoXForCausalLM(GPTNeoXConfig(**(_COMMON | _STD | changes)))


def gpt2(**changes: Any) -> PreTrainedModel:
    """Learned positions, Conv1D weights, tied embeddings."""
    sizes: dict[str, Any] = {
        "n_positions": CONTEXT,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": 64,
    }
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, initializer_range=0.3, bos_token_id=0, **(sizes | changes))
    )


def llama(**changes: Any) -> PreTrainedModel:
    """RMSNorm, full rotary positions, two query heads for each key-value head."""
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **(_COMMON | _STD | changes)))


def phi(**changes: Any) -> PreTrainedModel:
    """Biases everywhere, parallel blocks, partial rotary."""
    return PhiForCausalLM(PhiConfig(**(_COMMON | _STD | changes)))


def opt(**changes: Any) -> PreTrainedModel:
    """Learned positions with an offset, ReLU."""
    sizes: dict[str, Any] = {
        "ffn_dim": 64,
        "word_embed_proj_dim": WIDTH,
        "init_std": 0.3,
        "dropout": 0.0,
    }
    return OPTForCausalLM(OPTConfig(**(_COMMON | sizes | changes)))


def mamba(**changes: Any) -> PreTrainedModel:
    """No attention at all: Mamba-1 (Gu & Dao 2023)."""
    return MambaForCausalLM(MambaConfig(**(_SCAN | changes)))


def falcon_mamba(**changes: Any) -> PreTrainedModel:
    """Mamba-1 whose dt, B and C are normed before the scan (FalconMamba)."""
    return FalconMambaForCausalLM(FalconMambaConfig(**(_SCAN | changes)))


def mamba2(**changes: Any) -> PreTrainedModel:
    """Four heads in two groups, a gated norm behind the scan: Mamba-2 (Dao & Gu 2024)."""
    heads: dict[str, Any] = {"num_heads": 4, "head_dim": 16, "n_groups": 2}
    return Mamba2ForCausalLM(Mamba2Config(**(_SCAN | heads | changes)))


def bloom(**changes: Any) -> PreTrainedModel:
    """Does not call transformers' registry of attention, known to TransformerLens: ALiBi."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
    }
    return BloomForCausalLM(BloomConfig(initializer_range=0.3, bos_token_id=0, **(sizes | changes)))


def gptj(**changes: Any) -> PreTrainedModel:
    """Does not call the registry either: rotary on neighbouring pairs, parallel blocks."""
    sizes: dict[str, Any] = {
        "n_positions": CONTEXT,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "rotary_dim": 4,
    }
    return GPTJForCausalLM(
        GPTJConfig(vocab_size=VOCAB, initializer_range=0.3, bos_token_id=0, **(sizes | changes))
    )


# Those whose circuits are read from weights too, the others that run natively, and those that
# TransformerLens runs.
NATIVE: dict[str, Callable[..., PreTrainedModel]] = {
    "gpt_neox": gpt_neox,
    "gpt2": gpt2,
    "llama": llama,
}
FOUND: dict[str, Callable[..., PreTrainedModel]] = {"phi": phi, "opt": opt}
BRIDGED: dict[str, Callable[..., PreTrainedModel]] = {"bloom": bloom, "gptj": gptj}
MAMBAS: dict[str, Callable[..., PreTrainedModel]] = {
    "mamba": mamba,
    "falcon_mamba": falcon_mamba,
    "mamba2": mamba2,
}
ALL = NATIVE | FOUND | BRIDGED


def build(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """A model of one of ALL or of MAMBAS, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (ALL | MAMBAS)[name](**changes).eval()
        # Biases and gains that start at 0 and 1 would hide mistakes in them.
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.data += (
                    0.1 * torch.randn_like(parameter) * (1.0 if key.endswith("bias") else 0.5)
                )
        nn.Module.to(model, dtype)
    return model


def prompts(n_prompts: int = 5, period: int = 12, seed: int = 0) -> Prompts:
    """Repeated random tokens that fit these models."""
    return repeated_tokens(
        VOCABULARY, period=period, n_prompts=n_prompts, rng=np.random.default_rng(seed)
    )
