"""Mamba as a subject: a plain Hugging Face module whose mixers run on selective_scan, with its
activations by name.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.errors import InputError
from interp_core.mamba.selective_scan import fast_scan, mamba_mixers
from interp_core.models.hooks import hooked
from interp_core.models.norms import Norm, read_norm
from interp_core.models.reading import rows_of
from interp_core.models.sites import MAMBA_TAPS, Site, Tap
from interp_core.models.subject import Subject, as_subject, without_advice

UNBOUNDED = 2**31 - 1  # tokens: a scan has no longest sequence


@dataclass(frozen=True, eq=False)
class MambaSubject(Subject):
    """A Mamba-1 language model, FalconMamba's too. It has channels and states where transformers
    have heads.
    """

    _stock: list[bool] = field(default_factory=lambda: [False], repr=False)

    @property
    def kind(self) -> str:
        """What it is, in a sentence."""
        return "Mamba"

    @property
    def d_inner(self) -> int:
        """Channels of a layer's inner stream."""
        return int(self.config.intermediate_size)

    @property
    def unit(self) -> str:
        """What has a hidden attention of its own: a channel, or a Mamba-2's head."""
        return "channel"

    @property
    def n_scans(self) -> int:
        """How many of these a layer has."""
        return self.d_inner

    @property
    def d_state(self) -> int:
        """States of a channel."""
        return int(self.config.state_size)

    @property
    def d_conv(self) -> int:
        """Taps of the convolution; the last one reads the position itself."""
        return int(self.config.conv_kernel)

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution."""
        return self.d_inner

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Where each site is."""
        return MAMBA_TAPS

    @property
    def n_ctx(self) -> int:
        return UNBOUNDED

    def check(self) -> None:
        """InputError, naming the variant, for mixers that are not known here."""
        mamba_mixers(self.model)

    def mixer(self, layer: int) -> Any:
        """A layer's mixer: in_proj, conv1d, x_proj, dt_proj, A_log, D, out_proj."""
        return self.model.get_submodule(f"backbone.layers.{self.checked_layer(layer)}.mixer")

    @contextmanager
    def stock(self) -> Iterator[None]:
        """Inside the block the model runs its authors' own code instead of selective_scan."""
        before, self._stock[0] = self._stock[0], True
        try:
            yield
        finally:
            self._stock[0] = before

    def ids(self, tokens: Any) -> Int[Tensor, "batch position"]:
        return super().ids(rows_of(self, tokens))

    def fast(self) -> AbstractContextManager[None]:
        """Inside the block a call of the model is fast, unless it shall be stock."""
        return nullcontext() if self._stock[0] else fast_scan(self.model)

    def trunk(self, ids: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position d_model"]:
        return self._run(input_ids=ids)

    def suffix(
        self, residual: Float[Tensor, "batch position d_model"], first: int
    ) -> Float[Tensor, "batch position d_model"]:
        """What trunk gives when the residual stream before layer `first` is this one."""
        backbone: Any = self.model.base_model
        with self.fast(), without_advice():
            for block in backbone.layers[first:]:
                residual = block(residual)
            return backbone.norm_f(residual)

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        head: Any = self.model.get_output_embeddings()
        return head(hidden.to(head.weight.dtype)).float()

    @contextmanager
    def attach(self, site: Site, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        if site.name not in self.taps:
            raise InputError(
                f"{self.name} is a {self.kind}: it has no {site}; sites are {', '.join(self.taps)}"
            )
        self.checked_layer(site.layer, site)
        tap = self.taps[site.name]
        with hooked(
            self.model.get_submodule(tap.module.format(layer=site.layer)), tap.side, function
        ):
            yield

    @torch.no_grad()
    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        weight: Any = self.model.get_input_embeddings().weight
        return weight.float()

    @torch.no_grad()
    def unembedding(self) -> Float[Tensor, "d_model vocab"]:
        head: Any = self.model.get_output_embeddings()
        return self._norm.fold(head.weight.float().T)

    @contextmanager
    def final_scale(self) -> Iterator[list[Tensor]]:
        scales: list[Tensor] = []
        norm = self._norm
        with hooked(
            self.model.get_submodule("backbone.norm_f"),
            "input",
            lambda x: scales.append(norm.divisor(x)),
        ):
            yield scales

    @cached_property
    def _norm(self) -> Norm:
        norm = read_norm(self.model.get_submodule("backbone.norm_f"), self.d_model)
        if norm is None:
            raise InputError(f"{self.name}: its final norm is none that is known")
        return norm

    def _run(self, **inputs: Any) -> Float[Tensor, "batch position d_model"]:
        with self.fast(), without_advice():
            return self.model.base_model(**inputs, use_cache=False).last_hidden_state


def as_mamba(subject: Subject) -> MambaSubject:
    """The subject, known to be a Mamba.

    InputError, naming what it is, when it is something else.
    """
    known = as_subject(subject)
    if not isinstance(known, MambaSubject):
        raise InputError(
            f"{subject.name} is a {subject.config.model_type}, not a Mamba (model_type mamba, "
            "falcon_mamba or mamba2)"
        )
    known.check()
    return known
