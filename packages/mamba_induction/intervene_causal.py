"""The study's interventions with their controls: which layer, which tap, which read and which state
copying needs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.mamba.subject import MambaSubject
from interp_core.measures.scores import copy_behaviour
from interp_core.models.subject import Subject
from interp_core.progress import progress
from interp_core.statistics.resampling import mean_interval
from interp_core.stimuli.prompts import Prompts
from mamba_induction.data import Stimuli, first_prompts
from mamba_induction.intervene import (
    lags_removed,
    mean_writes,
    states,
    with_state,
    without_layer,
    without_reads,
    without_taps,
)
from mamba_induction.params import OFFSETS, PREFIX, MambaInduction

Change = Float[np.ndarray, "prompt two"]  # of loss (nats) and accuracy at the copy operations
Block = Callable[[], AbstractContextManager[None]]
ABLATIONS = ("zero", "mean", "resample")


@dataclass(frozen=True)
class Bench:
    """A model and the prompts it copies, all in one batch, with the clean loss and accuracy."""

    subject: Subject
    prompts: Prompts
    clean: Float[np.ndarray, "prompt two"]

    @classmethod
    def of(cls, subject: Subject, prompts: Prompts) -> "Bench":
        """Run it clean."""
        return cls(subject, prompts, _behaviour(subject, prompts))

    def change(self, block: AbstractContextManager[None]) -> Change:
        """What the block's edit changes."""
        with block:
            return _behaviour(self.subject, self.prompts) - self.clean

    @property
    def places(self) -> tuple[Int[Tensor, " pair"], ...]:
        """Prompt, query and earlier occurrence of each copy operation, on the model's device."""
        pairs = self.prompts.pairs
        return tuple(
            torch.as_tensor(part, device=self.subject.device)
            for part in (pairs.batch, pairs.query, pairs.earlier)
        )


def causal(
    subject: Subject, stimuli: Stimuli, params: MambaInduction
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Report and arrays of every intervention on the repeated random tokens.

    `layers`: each layer's output replaced (zero, mean, resample), and what that does to new tokens
    of real text. `reads`: the effective attention of the queries to s + d cut, layer by layer and
    in all layers, against as many random other keys. In a Mamba also `taps` (convolution weights,
    against as many random ones of the same layer) and `states` (the state at the repetition
    boundary replaced by the control's, and put back into the control).
    """
    prompts = first_prompts(stimuli.repeated, params.causal_prompts)
    bench = Bench.of(subject, prompts)
    arrays: dict[str, np.ndarray] = {"clean": bench.clean}
    report: dict[str, Any] = {
        "name": subject.name,
        "n": len(prompts.tokens),
        "copy_operations": len(prompts.pairs),
        "draws": params.causal_draws,
        "clean_loss": float(bench.clean[:, 0].mean()),
        "clean_accuracy": float(bench.clean[:, 1].mean()),
        "layers": _layers(bench, stimuli, params, arrays),
        "reads": _reads(bench, params, arrays),
    }
    if isinstance(subject, MambaSubject):
        report["taps"] = _taps(bench, subject, params, arrays)
        report["states"] = _states(bench, subject, params, arrays)
    return report, arrays


def layer_sets(subject: Subject) -> dict[str, list[int]]:
    """Each layer alone, and all together."""
    single = {f"L{layer}": [layer] for layer in range(subject.n_layers)}
    return single | {"all": list(range(subject.n_layers))}


def _layers(
    bench: Bench, stimuli: Stimuli, params: MambaInduction, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    subject, report = bench.subject, {}
    means = mean_writes(subject, subject.ids(bench.prompts.tokens))
    windows = None if stimuli.windows is None else stimuli.windows[: params.causal_prompts]
    clean = None if windows is None else _on_new_tokens(subject, windows, params)
    for how in ABLATIONS:
        for layer in range(subject.n_layers):
            changed = bench.change(without_layer(subject, layer, how, means))
            arrays[f"layers/{how}/L{layer}"] = changed
            found = _described(changed, params)
            if windows is not None:
                with without_layer(subject, layer, how, means):
                    elsewhere = _on_new_tokens(subject, windows, params) - clean
                found["new_tokens"] = _described(elsewhere, params)
            report.setdefault(how, {})[f"L{layer}"] = found
    return report


def _reads(bench: Bench, params: MambaInduction, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    batch, query, earlier = bench.places
    cuts = {f"{offset:+d}": (offset,) for offset in OFFSETS} | {"prefix": PREFIX}
    rng = np.random.default_rng([params.seed, 7])
    report: dict[str, Any] = {}

    def without(layers: list[int], keys: Int[Tensor, "key pair"]) -> AbstractContextManager[None]:
        wanted = keys.flatten()
        return without_reads(
            bench.subject, layers, batch.repeat(len(keys)), query.repeat(len(keys)), wanted
        )

    for where, layers in layer_sets(bench.subject).items():
        random = {
            size: _draws(
                lambda size=size, layers=layers: without(layers, _other_keys(bench, size, rng)),
                bench,
                params,
                f"random reads of {where}",
            )
            for size in (1, len(PREFIX))
        }
        for name, offsets in cuts.items():
            keys = torch.stack([earlier + offset for offset in offsets])
            changed = bench.change(without(layers, keys))
            arrays[f"reads/{where}/{name}"] = changed
            report.setdefault(where, {})[name] = _against(changed, random[len(offsets)], params)
        arrays |= {f"reads/{where}/random {size}": values for size, values in random.items()}
    return report


def _other_keys(bench: Bench, size: int, rng: np.random.Generator) -> Int[Tensor, "key pair"]:
    """For each copy operation `size` different keys, up to its query and not among the offsets of
    the profile.
    """
    pairs = bench.prompts.pairs
    position = np.arange(bench.prompts.tokens.shape[1])
    away = position - pairs.earlier[:, None]
    allowed = (position <= pairs.query[:, None]) & ((away < min(OFFSETS)) | (away > max(OFFSETS)))
    order = np.where(allowed, rng.random(allowed.shape), np.inf).argsort(axis=1)
    return torch.as_tensor(order[:, :size].T.copy(), device=bench.subject.device)


def _taps(
    bench: Bench, subject: MambaSubject, params: MambaInduction, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(params.seed)
    lags = range(1, subject.d_conv)
    cuts = {f"lag {lag}": (lag,) for lag in lags} | {"all before": tuple(lags)}
    report: dict[str, Any] = {}
    for where, layers in layer_sets(subject).items():
        random = {
            size: _draws(
                lambda size=size, layers=layers: without_taps(
                    subject, layers, _random_taps(subject, size, generator)
                ),
                bench,
                params,
                f"random taps of {where}",
            )
            for size in {1, len(lags)}
        }
        for name, chosen in cuts.items():
            changed = bench.change(without_taps(subject, layers, lags_removed(subject, chosen)))
            arrays[f"taps/{where}/{name}"] = changed
            report.setdefault(where, {})[name] = _against(changed, random[len(chosen)], params)
        arrays |= {f"taps/{where}/random {size}": values for size, values in random.items()}
    return report


def _random_taps(subject: MambaSubject, size: int, generator: torch.Generator) -> Tensor:
    """As many weights of the convolution as `size` whole taps have, anywhere among all taps."""
    removed = torch.zeros(subject.d_inner * subject.d_conv, dtype=torch.bool)
    removed[torch.randperm(len(removed), generator=generator)[: size * subject.d_inner]] = True
    return removed.reshape(subject.d_inner, subject.d_conv).to(subject.device)


def _states(
    bench: Bench, subject: MambaSubject, params: MambaInduction, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Out: the clean prompt continues from the control's state, against random directions of the
    same length. Back: the control continues from the clean state, against the clean states of other
    prompts.
    """
    prompts, boundary = bench.prompts, params.period  # BOS, then the first copy
    generator = torch.Generator().manual_seed(params.seed + 1)
    control = Prompts(
        prompts.family, prompts.control, prompts.control, prompts.pairs, prompts.lengths
    )
    without_copy = Bench.of(subject, control)
    clean = states(subject, subject.ids(prompts.tokens), boundary)
    empty = states(subject, subject.ids(prompts.control), boundary)
    report: dict[str, Any] = {"control_accuracy": float(without_copy.clean[:, 1].mean())}

    def noise(layers: list[int]) -> AbstractContextManager[None]:
        added = {}
        for layer in layers:
            gap = empty[layer] - clean[layer]
            drawn = torch.randn(gap.shape, generator=generator).to(gap)
            size = gap.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1)
            added[layer] = drawn * size[:, None, None]
        return with_state(subject, added, boundary)

    def others(layers: list[int]) -> AbstractContextManager[None]:
        shift = 1 + int(torch.randint(len(prompts.tokens) - 1, (1,), generator=generator))
        return with_state(
            subject,
            {layer: clean[layer].roll(shift, 0) - empty[layer] for layer in layers},
            boundary,
        )

    for where, layers in layer_sets(subject).items():
        out = bench.change(
            with_state(subject, {layer: empty[layer] - clean[layer] for layer in layers}, boundary)
        )
        back = without_copy.change(
            with_state(subject, {layer: clean[layer] - empty[layer] for layer in layers}, boundary)
        )
        random = {
            "out": _draws(
                lambda layers=layers: noise(layers), bench, params, f"random states of {where}"
            ),
            "back": _draws(
                lambda layers=layers: others(layers),
                without_copy,
                params,
                f"other states of {where}",
            ),
        }
        report[where] = {
            "out": _against(out, random["out"], params),
            "back": _against(back, random["back"], params, gain=True),
        }
        arrays |= {f"states/{where}/out": out, f"states/{where}/back": back}
        arrays |= {f"states/{where}/random {name}": values for name, values in random.items()}
    return report


def _draws(
    block: Block, bench: Bench, params: MambaInduction, label: str
) -> Float[np.ndarray, "draw two"]:
    """Mean change under each of `causal_draws` random controls."""
    bar = progress(range(params.causal_draws), label, unit="draw")
    return np.stack([bench.change(block()).mean(axis=0) for _ in bar])


def _behaviour(subject: Subject, prompts: Prompts) -> Float[np.ndarray, "prompt two"]:
    accuracy, loss = copy_behaviour(subject, prompts, batch_size=len(prompts.tokens))
    return np.stack([loss, accuracy], axis=1)


@torch.no_grad()
def _on_new_tokens(
    subject: Subject, windows: np.ndarray, params: MambaInduction
) -> Float[np.ndarray, "window two"]:
    """Loss and accuracy at the tokens of each window that did not occur before in it: nothing there
    can be copied.
    """
    before = np.tril(windows[:, 1:, None] == windows[:, None, :]).any(axis=2)
    found = []
    for first in range(0, len(windows), params.prompts_at_once):
        ids = subject.ids(windows[first : first + params.prompts_at_once])
        logits = subject.logits(ids)[:, :-1].double()
        loss = torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
        found.append(
            torch.stack([loss, (logits.argmax(dim=-1) == ids[:, 1:]).double()], dim=-1)
            .cpu()
            .numpy()
        )
    counted = np.where(before[..., None], 0.0, np.concatenate(found)).sum(axis=1)
    return counted / (~before).sum(axis=1, keepdims=True)


def _against(
    changed: Change,
    random: Float[np.ndarray, "draw two"],
    params: MambaInduction,
    *,
    gain: bool = False,
) -> dict[str, Any]:
    """The change with its interval, the random controls' mean and central 95 %, and p = (1 + draws
    whose accuracy changes as much) / (1 + draws).
    """
    mean, sign = changed.mean(axis=0), -1 if gain else 1
    hits = int((sign * random[:, 1] <= sign * mean[1] + 1e-12).sum())
    return _described(changed, params) | {
        "random": {
            kind: {
                "value": float(random[:, column].mean()),
                "low": float(np.quantile(random[:, column], 0.025)),
                "high": float(np.quantile(random[:, column], 0.975)),
            }
            for column, kind in enumerate(("loss", "accuracy"))
        },
        "p": (1 + hits) / (1 + len(random)),
    }


def _described(changed: Change, params: MambaInduction) -> dict[str, Any]:
    interval = _interval(changed, params)
    parts = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {
        kind: {name: float(values[column]) for name, values in parts.items()}
        for column, kind in enumerate(("loss", "accuracy"))
    }


def _interval(values: np.ndarray, params: MambaInduction) -> Any:
    rng = np.random.default_rng([params.seed, 8])
    return mean_interval(values, rng, resamples=params.bootstrap_resamples)
