"""Where activations live: names (TransformerLens's without `hook_`) and the module that carries
each.

A site is named `blocks.{layer}.{name}`. Shapes are always
    resid_pre, resid_post, attn_out, mlp_out   [batch, position, d_model]
                                               attn_out, mlp_out: as added, behind norms and
                                               multipliers
    attn.z                                     [batch, position, head, d_head]
                                               what the output projection reads
    attn.rot_q, attn.rot_k, attn.v             [batch, position, head, d_head]
                                               as attention uses them: after rotary where there is
                                               any; keys and values once per key-value head
    attn.pattern                               [batch, head, query, key]
                                               read only: it was already used
    cross_attn.z                               [batch, position, head, d_head]
                                               as attn.z, of attention to another sequence
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
from typing import Any, Literal

from interp_core.errors import InputError
from interp_core.given import shown, whole

RESIDUAL = ("resid_pre", "resid_post", "attn_out", "mlp_out")
ATTENTION = ("attn.rot_q", "attn.rot_k", "attn.v")
MIXER = ("mixer.in_proj", "mixer.x", "mixer.x_proj", "mixer.gated_y", "mixer_out")
NAMES = (*RESIDUAL, "attn.z", *ATTENTION, "attn.pattern", "cross_attn.z", *MIXER)
WITH_HEADS = ("attn.z", *ATTENTION, "cross_attn.z")  # whose third axis is heads


@dataclass(frozen=True, order=True)
class Site:
    """One activation: its layer (from 0) and its name, one of sites.NAMES."""

    layer: int
    name: str

    def __post_init__(self) -> None:
        # As a plain int: a tensor of the same number would be another key.
        object.__setattr__(self, "layer", whole(self.layer, "the layer of a site"))
        if not isinstance(self.name, str) or self.name not in NAMES:
            raise InputError(f"no site is called {self.name!r}; sites are {', '.join(NAMES)}")

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{self.name}"

    @classmethod
    def of(cls, given: Any) -> "Site":
        """A site, or its name in text. InputError for anything else."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, str):
            raise InputError(
                f'a site is Site(2, "attn.z"), or "blocks.2.attn.z"; got {shown(given)}'
            )
        return cls.parse(given)

    @classmethod
    def parse(cls, text: str) -> "Site":
        """`blocks.3.attn.z`, or TransformerLens's spelling `blocks.3.attn.hook_z`."""
        match = re.fullmatch(r"blocks\.([0-9]+)\.(.+)", text.replace("hook_", ""))
        if match is None:
            raise InputError(
                f"{text!r} is not a site: write blocks.LAYER.NAME, NAME one of {', '.join(NAMES)}"
            )
        return cls(int(match[1]), match[2])


@dataclass(frozen=True)
class Tap:
    """The module whose input or output is a site."""

    module: str
    side: Literal["input", "output"]


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
