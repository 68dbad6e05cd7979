"""Models under study: what all of them answer (Subject), and what those with attention heads add
(Transformer).
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.errors import InputError
from interp_core.given import whole
from interp_core.models.divided import home_of
from interp_core.models.sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Of transformers: advice to install CUDA kernels, on which nothing here would run, and to give an
# attention mask, which no causal row that is padded at its end needs.
_ADVISING = ("transformers.integrations.hub_kernels", "transformers.modeling_utils")


@dataclass(frozen=True)
class HeadWeights:
    """One layer's attention weights with its norm's gain folded in; keys and values repeated per
    query head.

    Acting on the normalised (and, for LayerNorm, centred) residual stream from the left: q = x @
    W_Q.
    """

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "head d_model d_head"]
    W_V: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]


@runtime_checkable
class AttentionRows(Protocol):
    """What an observer sees of one layer (attention.AttentionCall, or the bridge's pattern)."""

    def entries(
        self,
        batch: Int[Tensor, " entry"],
        query: Int[Tensor, " entry"],
        keys: Int[Tensor, "kind entry"],
    ) -> Float[Tensor, "kind entry head"]: ...

    def values(
        self, batch: Int[Tensor, " entry"], position: Int[Tensor, " entry"]
    ) -> Float[Tensor, "entry head d_head"]: ...


Observer = Callable[[int, AttentionRows], None]


@dataclass(frozen=True, eq=False)
class Subject(ABC):
    """A model of sequences under study: ids in, logits out, activations by name.

    It need not have attention.
    """

    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase | None"
    bos: int
    hash: str = field(
        default=""
    )  # of the weight files, or of the parameters for models that have none

    @property
    def config(self) -> Any:
        """The transformers config, of the text's part where a model has several."""
        return self.model.config.get_text_config()

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def n_ctx(self) -> int:
        """Longest sequence that the positions of the model know, in tokens."""
        return int(self.config.max_position_embeddings)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.config.vocab_size)

    @property
    def device(self) -> torch.device:
        """Where ids go in and logits come out: where the weights are, unless it is divided."""
        return home_of(self.model)

    @property
    def pattern_is_editable(self) -> bool:
        """Whether an edited `attn.pattern` is what the model goes on with."""
        return False

    def checked_layer(self, layer: int, asked: Any = None) -> int:
        """The number of a layer that the model has, counted from 0. InputError, naming what was
        asked for, for another.
        """
        number = whole(layer, "a layer")
        if not 0 <= number < self.n_layers:
            asked = f"layer {number}" if asked is None else asked
            raise InputError(
                f"{self.name} has layers 0 to {self.n_layers - 1}; there is no {asked}"
            )
        return number

    def ids(self, tokens: Any) -> Int[Tensor, "batch position"]:
        """Token ids (array or tensor) on the model's device.

        InputError if too long or outside the vocabulary.
        """
        ids = torch.as_tensor(tokens, dtype=torch.long, device=self.device)
        if ids.shape[-1] > self.n_ctx:
            raise InputError(
                f"{self.name}: a sequence of {ids.shape[-1]} tokens is longer than its context, "
                f"{self.n_ctx}"
            )
        if ids.numel() and (int(ids.max()) >= self.vocab_size or int(ids.min()) < 0):
            outside = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise InputError(
                f"{self.name}: token id {outside} is outside its vocabulary of {self.vocab_size}"
            )
        return ids

    def logits(self, ids: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position vocab"]:
        """Logits at t predict the token at t + 1."""
        return self.unembed(self.trunk(ids))

    @abstractmethod
    def trunk(self, ids: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position d_model"]:
        """The residual stream after the last block and the final norm: everything but the
        unembedding.
        """

    @abstractmethod
    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Logits of normed hidden states: everything after the final norm, multipliers and caps
        included.
        """

    @abstractmethod
    def attach(
        self, site: Site, function: Callable[[Tensor], Tensor | None]
    ) -> AbstractContextManager[None]:
        """Call `function` with the activation at a site whenever it fires; what it returns takes
        its place.
        """

    @abstractmethod
    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        """W_E."""

    @abstractmethod
    def unembedding(self) -> Float[Tensor, "d_model vocab"]:
        """W_U with the final norm's gain folded in (and, for LayerNorm, centred over d_model) and
        the logits' multiplier; a cap on logits is left out.
        """

    @abstractmethod
    def final_scale(self) -> AbstractContextManager[list[Tensor]]:
        """Inside the block, collect the divisor of the final norm [batch, position] of each forward
        pass.
        """


@dataclass(frozen=True, eq=False)
class Transformer(Subject):
    """A decoder with attention heads.

    Two kinds: native (plain Hugging Face module, fused attention) and bridge.
    """

    @property
    def n_heads(self) -> int:
        """Query heads a layer."""
        return int(self.config.num_attention_heads)

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return int(getattr(self.config, "head_dim", None) or self.d_model // self.n_heads)

    @abstractmethod
    def observing(
        self, observer: Observer, layers: list[int] | None = None
    ) -> AbstractContextManager[None]:
        """Call observer(layer, rows) as each layer's attention runs; rows are not to be kept beyond
        the call.
        """

    @abstractmethod
    def freezing_attention(
        self, ids: Int[Tensor, "batch position"]
    ) -> AbstractContextManager[None]:
        """Run with the attention patterns of a clean run on `ids` (same ids inside the block),
        values live.
        """

    @abstractmethod
    def head_weights(self, layer: int) -> HeadWeights:
        """Attention weights of a layer, norm folded, in float32."""

    @abstractmethod
    def out_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O of a layer: z @ W_O is what a head adds to the residual stream, its multiplier and
        the gain of a norm behind attention included; that norm's divisor (`write_scales`) is not.
        """

    @abstractmethod
    def rotated(self, weights: Float[Tensor, "head d_model d_head"], distance: int) -> Tensor:
        """Query weights turned as rotary positions turn a query `distance` tokens after its key
        (identity without).
        """

    @abstractmethod
    def why_no_attribution(self) -> str | None:
        """Why what heads write cannot be followed to the logits; None where it can."""

    def why_no_copying(self) -> str | None:
        """Why what a head's values would write cannot be said; None where it can."""
        return self.why_no_attribution()

    def check_plain_writes(self) -> None:
        """InputError where what a head adds to the residual stream is not its values times
        out_weights.
        """
        reason = self.why_no_copying()
        if reason is None and self.norms_writes:
            reason = "a norm stands between its heads and the residual stream"
        if reason is not None:
            raise InputError(f"{self.name}: {reason}; what its heads write is not known by source")

    @property
    def norms_writes(self) -> bool:
        """Whether a norm stands between heads and the residual stream, or blocks behind rescale the
        stream.
        """
        return False

    @contextmanager
    def write_scales(self) -> Iterator[dict[int, Float[Tensor, "batch position"]]]:
        """Inside the block, collect by layer what a norm behind attention divides by; nothing where
        there is none.
        """
        yield {}

    def carried(self, layer: int) -> float:
        """What the blocks behind `layer` multiply the residual stream by before the final norm."""
        return 1.0


@contextmanager
def without_advice() -> Iterator[None]:
    """Inside the block transformers gives no advice on what is done otherwise here; errors stay."""
    loggers = [logging.getLogger(name) for name in _ADVISING]
    before = [logger.level for logger in loggers]

    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def as_subject(given: Any) -> Subject:
    """A model that was made ready for study. InputError, with the way, for another thing."""
    if not isinstance(given, Subject):
        raise InputError(
            f"a {type(given).__name__} is no model ready for study: give what load_model(...) or "
            "subject_of(model) returns"
        )
    return given


def as_transformer(subject: Subject) -> Transformer:
    """The subject, known to have heads. InputError, naming what it is, when it has none."""
    subject = as_subject(subject)
    if not isinstance(subject, Transformer):
        raise InputError(
            f"{subject.name} is a {subject.config.model_type}: it has no attention heads; this "
            "needs a transformer"
        )
    return subject
