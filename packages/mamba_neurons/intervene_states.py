"""Parts of a layer smaller and larger than a channel: its states, and a Mamba-2's heads."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import silu

from interp_core.mamba.head_attention import HeadCall
from interp_core.mamba.hidden_attention import Call, mixer_calls
from interp_core.mamba.subject import as_mamba
from interp_core.statistics.against_random import against_random
from interp_core.statistics.heads import Channel, Head
from interp_core.statistics.interval import bootstrap
from interp_core.statistics.random_sets import matched_sets
from mamba_neurons.data import Texts
from mamba_neurons.intervene import Change, Effects, effects, set_effects
from mamba_neurons.intervene_scored import Scored
from mamba_neurons.measure_activity import states
from mamba_neurons.model import Model, neuron_means
from mamba_neurons.params import MambaNeurons


def state_effects(
    model: Model, texts: Texts, layer: int, channels: np.ndarray, params: MambaNeurons
) -> Effects:
    """Exact effects of mean-ablating what each state n of these channels gives to y: C_i[n] h_i[c,
    n] SiLU(z_i[c]). A Mamba-2's norm then divides by what is left.
    """
    subject = as_mamba(model.subject)
    n_states = subject.d_state

    def call_of(batch: Texts) -> Call:
        return mixer_calls(subject, subject.ids(batch.tokens))[layer]

    parts = [
        _given(call_of(batch), channels)[batch.real].double().sum(dim=0)
        for batch in texts.batches(params.batch_size)
    ]
    mean = (torch.stack(parts).sum(dim=0) / int(texts.lengths.sum())).to(model.precision)

    every = model.write_directions(layer).to(model.precision)
    by_state = every[channels].repeat_interleave(n_states, dim=0)

    def changes(scored: Scored, batch: Texts) -> Change:
        call = call_of(batch)
        away = (mean - _given(call, channels)).to(mean.dtype)

        if isinstance(call, HeadCall):
            return _through_norm(call, away, np.repeat(channels, n_states), every)
        return lambda units: torch.einsum("btu,ud->ubtd", away[..., units], by_state[units])

    label = f"{model.name}: states of layer {layer}"
    return effects(model, texts, layer, len(mean), changes, params, label=label)


@torch.no_grad()
def _given(call: Call, channels: np.ndarray) -> Float[Tensor, "text position unit"]:
    """What each state of these channels gives to y, gated; a channel's states lie together."""
    if isinstance(call, HeadCall):
        read = call.read_of_states()[:, :, channels]
        return (read * silu(call.z)[..., channels, None]).flatten(2)

    h = states(call)[:, :, channels]
    return (h * call.C[:, :, None, :] * call.gate[..., channels, None]).flatten(2)


def _through_norm(
    call: HeadCall,
    away: Float[Tensor, "text position unit"],
    channel: Int[np.ndarray, " unit"],
    directions: Float[Tensor, "channel d_model"],
) -> Change:
    """What is written when a channel's gated y changes before the norm: the channel itself, and all
    of its group by the divisor.
    """
    v = call.y * silu(call.z)
    size = v.shape[-1] // call.n_groups
    place = torch.as_tensor(channel, device=v.device)
    group = place // size

    square = v.unflatten(-1, (call.n_groups, size)).pow(2).mean(dim=-1) + call.eps
    written = torch.einsum(
        "btgc,gcd->gbtd",
        call.gated_y.to(directions.dtype).unflatten(-1, (call.n_groups, size)),
        directions.unflatten(0, (call.n_groups, size)),
    )

    def change(units: slice) -> Float[Tensor, "unit text position d_model"]:
        c, g = place[units], group[units]
        a = torch.einsum("btu->ubt", away[..., units])
        before = torch.einsum("btu->ubt", v[..., c])
        squares = torch.einsum("btu->ubt", square[..., g])

        # (v + a)^2 - v^2, and what that does to 1 / divisor
        now = (squares + a * (2 * before + a) / size).rsqrt()
        shrunk = now * squares.sqrt() - 1
        own = call.weight[c][:, None, None] * a * now
        return shrunk[..., None] * written[g] + own[..., None] * directions[c][:, None, None]

    return change


def head_effects(
    model: Model, texts: Texts, params: MambaNeurons, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every head of a Mamba-2's layer mean-ablated, all its channels together, exactly; against
    distinct random sets of as many channels of the layer.

    Arrays head_kl, head_loss [head] and head_random_kl [set]; the report has each head with its
    interval over texts and its place among the random sets.
    """
    layer, n_heads = params.layer, as_mamba(model.subject).n_scans
    everyone = [Channel(layer, c) for c in range(model.n_neurons)]
    size = model.n_neurons // n_heads
    heads = [list(range(h * size, (h + 1) * size)) for h in range(n_heads)]

    drawn = matched_sets([everyone[c] for c in heads[0]], everyone, rng, draws=params.random_sets)
    random = [[int(unit.channel) for unit in one] for one in drawn.sets]

    means = neuron_means(model, texts, params.batch_size)
    found = set_effects(model, texts, layer, [*heads, *random], params, means)
    random_kl = found.mean_kl[n_heads:]

    report: dict[str, Any] = {
        "layer": layer,
        "channels_of_a_head": len(heads[0]),
        "random_sets": drawn.words,
        "heads": [],
    }
    for head in range(n_heads):
        kl, loss = (
            bootstrap(values[:, head], rng, resamples=params.bootstrap_resamples, unit="texts")
            for values in (found.kl, found.loss)
        )
        against = against_random(kl.value, random_kl, direction="above")
        report["heads"].append(
            {
                "head": str(Head(layer, head)),
                "kl": kl.to_json(),
                "loss": loss.to_json(),
                "against_random": against.to_json(),
            }
        )

    arrays = {
        "head_kl": found.mean_kl[:n_heads],
        "head_loss": found.loss[:, :n_heads].mean(axis=0),
        "head_random_kl": random_kl,
    }
    return arrays, report
