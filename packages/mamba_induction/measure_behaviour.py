"""What a model predicts where something comes again: losses and accuracies by prompt."""

import numpy as np
import torch
from jaxtyping import Float, Int

from interp_core.measures.scores import copy_behaviour
from interp_core.models.subject import Subject
from interp_core.stimuli.prompts import Prompts
from mamba_induction.data import Stimuli, as_control
from mamba_induction.params import MambaInduction


def behaviour_arrays(
    subject: Subject, stimuli: Stimuli, params: MambaInduction
) -> dict[str, np.ndarray]:
    """Per prompt (or block of spaced pairs, or window of text), float64.

    loss_by_copy [prompt, copy]: nats a token, each copy's first token left out, which cannot be
    foreseen when the segment begins to repeat. repetition_gain: first copy's loss less the later
    ones' mean. accuracy_by_period [prompt, period], accuracy_by_lag [block, lag], pairs_accuracy
    (each pair shown once), repeat_accuracy (second copies of the period of record) and
    control_accuracy (the same places with nothing to copy). Of real text:
    repeated_text_accuracy, natural_accuracy, unpredicted_accuracy (targets that a bigram model does
    not predict), context_loss [window, position], text_loss (nats a token) and in_context_score
    (loss at the context's end less the loss early in it; negative where context helps).
    """

    def accuracy(prompts: Prompts) -> Float[np.ndarray, " prompt"]:
        return copy_behaviour(subject, prompts, batch_size=params.prompts_at_once)[0]

    by_copy = loss_by_copy(subject, stimuli.copies, params)

    found = {
        "loss_by_copy": by_copy,
        "repetition_gain": by_copy[:, 0] - by_copy[:, 1:].mean(axis=1),
        "accuracy_by_period": np.stack(
            [accuracy(stimuli.by_period[period]) for period in params.periods], axis=1
        ),
        "accuracy_by_lag": accuracy(stimuli.spaced).reshape(-1, len(params.lags)),
        "pairs_accuracy": accuracy(stimuli.shuffled),
        "repeat_accuracy": accuracy(stimuli.repeated),
        "control_accuracy": accuracy(as_control(stimuli.repeated)),
    }
    if stimuli.windows is None:
        return found

    assert stimuli.repeated_text is not None
    assert stimuli.natural is not None
    assert stimuli.unpredicted is not None

    losses = token_losses(subject, stimuli.windows, params)
    return found | {
        "repeated_text_accuracy": accuracy(stimuli.repeated_text),
        "natural_accuracy": accuracy(stimuli.natural),
        "unpredicted_accuracy": accuracy(stimuli.unpredicted),
        "context_loss": losses,
        "text_loss": losses.mean(axis=1),
        "in_context_score": in_context_score(losses, params),
    }


def loss_by_copy(
    subject: Subject, prompts: Prompts, params: MambaInduction
) -> Float[np.ndarray, "prompt copy"]:
    """Mean loss of each copy's tokens, nats, its first token left out."""
    losses = token_losses(subject, prompts.tokens, params)
    return losses.reshape(len(losses), params.copies, params.period)[:, :, 1:].mean(axis=2)


def in_context_score(
    losses: Float[np.ndarray, "window target"], params: MambaInduction
) -> Float[np.ndarray, " window"]:
    """Loss over the last `around` tokens less the loss over as many before `early` of the context
    (Olsson et al. 2022: the 500th token less the 50th, one tenth of the context).
    """
    end = round(params.early * params.context)
    late = losses[:, -params.around :].mean(axis=1)
    early = losses[:, end - params.around : end].mean(axis=1)

    return late - early


@torch.no_grad()
def token_losses(
    subject: Subject, tokens: Int[np.ndarray, "prompt position"], params: MambaInduction
) -> Float[np.ndarray, "prompt target"]:
    """Negative log-likelihood of every token but the first, nats."""
    found = []

    for first in range(0, len(tokens), params.prompts_at_once):
        ids = subject.ids(tokens[first : first + params.prompts_at_once])
        logits = subject.logits(ids)[:, :-1].double()

        losses = torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
        found.append(losses.cpu().numpy())

    return np.concatenate(found)
