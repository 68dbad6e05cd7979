"""Where activations live: names (TransformerLens's without `hook_`) and the module that carries
each.

A site is named `blocks.{layer}.{name}`. Shapes are always
    resid_pre, resid_post, attn_out, mlp_out   [batch, position, d_model]
    attn.z                                     [batch, position, head, d_head]  what each head read, before W_O
    attn.rot_q, attn.rot_k, attn.v             [batch, position, head, d_head]  as attention uses them: after rotary
                                               where there is any; keys and values once per key-value head
    attn.pattern                               [batch, head, query, key]        read only: it was already used
and in a Mamba, whose channels are those of the inner stream (d_inner)
    mixer.in_proj     [batch, position, 2 channel]       what the convolution reads, then the gate
    mixer.x           [batch, position, channel]         after convolution and SiLU: what is scanned
    mixer.x_proj      [batch, position, rank + 2 state]  dt before its last map, B, C
    mixer.gated_y     [batch, position, channel]         y SiLU(z): what out_proj reads
    mixer_out         [batch, position, d_model]
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from interp_core.errors import InputError

RESIDUAL = ("resid_pre", "resid_post", "attn_out", "mlp_out")
ATTENTION = ("attn.rot_q", "attn.rot_k", "attn.v")
MIXER = ("mixer.in_proj", "mixer.x", "mixer.x_proj", "mixer.gated_y", "mixer_out")
NAMES = (*RESIDUAL, "attn.z", *ATTENTION, "attn.pattern", *MIXER)


@dataclass(frozen=True, order=True)
class Site:
    """One activation: its layer (from 0) and its name, one of sites.NAMES."""

    layer: int
    name: str

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise InputError(f"no site is called {self.name!r}; sites are {', '.join(NAMES)}")

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{self.name}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """`blocks.3.attn.z`, or TransformerLens's spelling `blocks.3.attn.hook_z`."""
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", text.replace("hook_", ""))
        if match is None:
            raise InputError(
                f"{text!r} is not a site: write blocks.LAYER.NAME, NAME one of {', '.join(NAMES)}"
            )
        return cls(int(match[1]), match[2])


@dataclass(frozen=True)
class Tap:
    """The module whose input or output is a site; `per_head` splits the last axis into (head,
    d_head).
    """

    module: str
    side: Literal["input", "output"]
    per_head: bool = False


@dataclass(frozen=True)
class Architecture:
    """Module paths of one family of decoders; `{layer}` stands for the layer's number."""

    name: str
    block: str
    attention: str
    out_projection: str
    mlp: str
    attention_norm: str
    final_norm: str
    embed: str

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Sites that a module carries. rot_q, rot_k, v and pattern are tapped inside attention
        (attention.py).
        """
        return {
            "resid_pre": Tap(self.block, "input"),
            "resid_post": Tap(self.block, "output"),
            "attn.z": Tap(self.out_projection, "input", per_head=True),
            "attn_out": Tap(self.out_projection, "output"),
            "mlp_out": Tap(self.mlp, "output"),
        }


GPT_NEOX = Architecture(
    name="GPT-NeoX",
    block="gpt_neox.layers.{layer}",
    attention="gpt_neox.layers.{layer}.attention",
    out_projection="gpt_neox.layers.{layer}.attention.dense",
    mlp="gpt_neox.layers.{layer}.mlp",
    attention_norm="gpt_neox.layers.{layer}.input_layernorm",
    final_norm="gpt_neox.final_layer_norm",
    embed="gpt_neox.embed_in",
)
GPT2 = Architecture(
    name="GPT-2",
    block="transformer.h.{layer}",
    attention="transformer.h.{layer}.attn",
    out_projection="transformer.h.{layer}.attn.c_proj",
    mlp="transformer.h.{layer}.mlp",
    attention_norm="transformer.h.{layer}.ln_1",
    final_norm="transformer.ln_f",
    embed="transformer.wte",
)
LLAMA = Architecture(
    name="Llama",
    block="model.layers.{layer}",
    attention="model.layers.{layer}.self_attn",
    out_projection="model.layers.{layer}.self_attn.o_proj",
    mlp="model.layers.{layer}.mlp",
    attention_norm="model.layers.{layer}.input_layernorm",
    final_norm="model.norm",
    embed="model.embed_tokens",
)

# Hugging Face's Mamba. It never calls conv1d and dt_proj, it reads their weights: these sites say
# all that they do.
_MAMBA_BLOCK = "backbone.layers.{layer}"
MAMBA_TAPS: Mapping[str, Tap] = {
    "resid_pre": Tap(_MAMBA_BLOCK, "input"),
    "resid_post": Tap(_MAMBA_BLOCK, "output"),
    "mixer.in_proj": Tap(f"{_MAMBA_BLOCK}.mixer.in_proj", "output"),
    "mixer.x": Tap(f"{_MAMBA_BLOCK}.mixer.x_proj", "input"),
    "mixer.x_proj": Tap(f"{_MAMBA_BLOCK}.mixer.x_proj", "output"),
    "mixer.gated_y": Tap(f"{_MAMBA_BLOCK}.mixer.out_proj", "input"),
    "mixer_out": Tap(f"{_MAMBA_BLOCK}.mixer.out_proj", "output"),
}

# transformers' config.model_type -> table. Anything else goes through TransformerLens's bridge
# (bridge.py).
ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt_neox": GPT_NEOX,
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
}
