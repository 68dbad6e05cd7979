"""What is in a bank, and whether it fits the tokens and the model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cursive_circuits.data_bank import Item
from cursive_circuits.data_tokens import Vocabulary
from interp_core.errors import InputError


def bank_report(items: Sequence[Item], tokens: Vocabulary, context: int) -> dict[str, Any]:
    """Counts, lengths and drift (canvas heights) of a bank.

    InputError names the first word whose repetition is longer than the model's context.
    """
    lengths, drifts = [], []
    for number, item in enumerate(items):
        length = len(tokens.encode(item.points))
        if 2 * length + 5 > context:
            raise InputError(
                f"item {number}, {item.text!r} by {item.author}: twice {length} tokens are more "
                f"than the context of "
                f"{context}: raise the configuration's context or leave the word out"
            )
        lengths.append(length)
        drifts.append(tokens.drift(item.points))
    letters = sum(len(item.text) for item in items)
    report = {
        "items": len(items),
        "writers": len({item.author for item in items}),
        "spellings": len({item.text for item in items}),
        "points_a_letter": sum(len(item.points) for item in items) / letters,
        "tokens_a_word": float(np.mean(lengths)),
        "longest_word": int(np.max(lengths)),
        "mean_drift": float(np.mean(drifts)),
        "largest_drift": float(np.max(drifts)),
    }
    report["verdict"] = (
        f"{report['items']:,} words by {report['writers']} writers, "
        f"{report['tokens_a_word']:.0f} tokens a word, "
        f"largest drift {report['largest_drift']:.4f} canvas heights"
    )
    return report
