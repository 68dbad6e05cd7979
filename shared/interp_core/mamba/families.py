"""Which recurrent models are known here, and by what the others mix tokens."""

from typing import TYPE_CHECKING, Any

from torch import nn

from interp_core.mamba.mamba2 import Mamba2Subject
from interp_core.mamba.subject import MambaSubject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KNOWN: dict[str, type[MambaSubject]] = {
    "mamba": MambaSubject,
    "falcon_mamba": MambaSubject,
    "mamba2": Mamba2Subject,
}

# A part of a module's class name, and what it does. State-space mixers have an A_log.
_RECURRENT = {
    "DeltaNet": "a gated delta rule",
    "DeltaAttention": "a gated delta rule",
    "LightningAttention": "linear attention",
    "Rglru": "a gated linear recurrence",
    "Rwkv": "an RWKV recurrence",
    "ShortConv": "short convolutions",
    "LSTM": "an LSTM",
}


def recurrent_subject(
    model: "PreTrainedModel", tokenizer: Any, *, name: str, bos: int, digest: str
) -> MambaSubject | None:
    """A Mamba as a subject; None for a model of any other type."""
    kind = KNOWN.get(model.config.model_type)
    return None if kind is None else kind(name, model, tokenizer, bos, digest)


def recurrence_of(model: nn.Module) -> str | None:
    """What a model mixes tokens by beside attention, or instead of it; None for attention alone."""
    for module in model.modules():
        if hasattr(module, "A_log") and not _named(module):
            return "a state-space scan"

        if words := _named(module):
            return words

    return None


def refusal(name: str, model: "PreTrainedModel", words: str) -> str:
    """One line for a recurrent model or a hybrid that is not known here."""
    return (
        f"{name} is a {model.config.model_type}: it mixes tokens by {words}, not by attention "
        f"heads alone; of recurrent models {', '.join(KNOWN)} are known here"
    )


def _named(module: nn.Module) -> str | None:
    kind = type(module).__name__
    return next((words for part, words in _RECURRENT.items() if part in kind), None)
