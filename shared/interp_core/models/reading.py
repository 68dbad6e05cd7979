"""What a model is given to read: token ids, one row of them, or text."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp_core.errors import InputError, first_line
from interp_core.stimuli.opening import NO_BOS

if TYPE_CHECKING:
    from interp_core.models.subject import Subject


def rows_of(subject: "Subject", given: Any) -> Tensor:
    """Rows of token ids: as they are given, one row of a flat list, or texts behind the subject's
    BOS.

    InputError for text without a tokenizer, and for texts of different lengths in tokens.
    """
    texts = [given] if isinstance(given, str) else given
    if isinstance(texts, list | tuple) and texts and isinstance(texts[0], str):
        return _encoded(subject, list(texts))

    try:
        ids = torch.as_tensor(given)
    except (ValueError, TypeError, RuntimeError) as problem:
        raise InputError(
            f"{subject.name}: these are no rows of token ids: {first_line(problem)}"
        ) from None

    # A number with a fraction is a mistake, such as logits given for ids: it is not cut off.
    whole = not ids.is_floating_point() and not ids.is_complex() and ids.dtype != torch.bool
    if not whole or ids.ndim not in (1, 2) or ids.numel() == 0:
        raise InputError(
            f"{subject.name}: token ids are whole numbers, a row or rows of them; got "
            f"{list(ids.shape)} of {str(ids.dtype).removeprefix('torch.')}"
        )
    return ids[None] if ids.ndim == 1 else ids


def _encoded(subject: "Subject", texts: list[str]) -> Tensor:
    if subject.tokenizer is None:
        raise InputError(f"{subject.name} has no tokenizer: give token ids instead of text")

    rows: Any = subject.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    if len({len(row) for row in rows}) > 1:
        lengths = ", ".join(str(len(row)) for row in rows)
        raise InputError(
            f"{subject.name}: texts of one batch need equally many tokens, these have {lengths}: "
            "give them one by one"
        )

    first = [] if subject.bos == NO_BOS else [subject.bos]
    return torch.tensor([first + row for row in rows], dtype=torch.long)
