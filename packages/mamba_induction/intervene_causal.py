"""The study's interventions with their controls: which layer, which read, which tap and which scan
state copying needs, and whether the few that it needs suffice.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp_core.mamba.subject import MambaSubject
from interp_core.models.subject import Subject
from mamba_induction.data import Stimuli, as_control, first_prompts
from mamba_induction.intervene import (
    Ablation,
    mean_writes,
    random_direction,
    states,
    taps_at,
    with_state,
    without_layer,
    without_taps,
)
from mamba_induction.intervene_bench import (
    ACCURACY,
    LOSS,
    Bench,
    Block,
    Report,
    compared,
    described,
    layer_sets,
)
from mamba_induction.intervene_kept import kept
from mamba_induction.intervene_reads import Arrays, reads_of_answers, reads_of_queries, verdict
from mamba_induction.params import MambaInduction
from mamba_induction.streams import STREAMS

ABLATIONS: tuple[Ablation, ...] = ("zero", "mean", "resample")


def causal(
    subject: Subject, stimuli: Stimuli, params: MambaInduction
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Report and arrays of every intervention on the repeated random tokens.

    `layers`: each layer's output replaced (zero, mean, resample), and what that does to new tokens
    of real text. `reads`: what queries read at s + d cut, `answer_reads`: what the answer's
    position reads, each layer by layer and in all, against random other keys. `verdict`: which read
    is needed. `kept`: what is left with that read and little else, None where no read is needed. In
    a Mamba also `taps` (convolution weights, against as many random ones of the same layer) and
    `states` (the scan state at the repetition boundary replaced by the control's, and put back into
    the control).
    """
    prompts = first_prompts(stimuli.repeated, params.causal_prompts)
    bench, control = Bench.of(subject, prompts), Bench.of(subject, as_control(prompts))
    arrays: Arrays = {"clean": bench.clean, "control": control.clean}

    report: Report = {
        "name": subject.name,
        "n": len(prompts.tokens),
        "copy_operations": len(prompts.pairs),
        "draws": params.causal_draws,
        "clean_loss": float(bench.clean[:, LOSS].mean()),
        "clean_accuracy": float(bench.clean[:, ACCURACY].mean()),
        "control_accuracy": float(control.clean[:, ACCURACY].mean()),
        "layers": _layers(bench, stimuli, params, arrays),
        "reads": reads_of_queries(bench, params, arrays),
        "answer_reads": reads_of_answers(bench, params, arrays),
    }

    if isinstance(subject, MambaSubject):
        report["taps"] = _taps(bench, subject, params, arrays)
        report["states"] = swapped_states(bench, control, subject, params, arrays)

    found = verdict(bench, control, report["reads"], arrays, params)
    best = found["best"]

    report["verdict"] = found
    report["kept"] = None if best is None else kept(bench, best, params, arrays)
    return report, arrays


def _layers(bench: Bench, stimuli: Stimuli, params: MambaInduction, arrays: Arrays) -> Report:
    subject = bench.subject
    means = mean_writes(subject, subject.ids(bench.prompts.tokens))

    windows = None if stimuli.windows is None else stimuli.windows[: params.causal_prompts]
    clean = None if windows is None else on_new_tokens(subject, windows, params)
    report: Report = {}

    for how in ABLATIONS:
        for layer in range(subject.n_layers):
            changed = bench.change(without_layer(subject, layer, how, means))
            arrays[f"layers/{how}/L{layer}"] = changed
            found = described(changed, params)

            if windows is not None and clean is not None:
                with without_layer(subject, layer, how, means):
                    elsewhere = on_new_tokens(subject, windows, params) - clean
                found["new_tokens"] = described(elsewhere, params, unit="texts")

            report.setdefault(how, {})[f"L{layer}"] = found

    return report


def _taps(bench: Bench, subject: MambaSubject, params: MambaInduction, arrays: Arrays) -> Report:
    """Every lag without its tap, lag 0 too: there a position's own token enters.

    All taps together have no control that could win, and are not removed.
    """
    generator = torch.Generator().manual_seed(params.seed)
    report: Report = {}

    for where, layers in layer_sets(subject).items():

        def draw(layers: list[int] = layers) -> Block:
            return without_taps(subject, layers, random_taps(subject, generator))

        random = bench.draws(draw, params, f"random taps of {where}")
        arrays[f"taps/{where}/random"] = random

        for lag in range(subject.d_conv):
            changed = bench.change(without_taps(subject, layers, taps_at(subject, [lag])))
            arrays[f"taps/{where}/lag {lag}"] = changed
            report.setdefault(where, {})[f"lag {lag}"] = compared(bench, changed, random, params)

    return report


def random_taps(subject: MambaSubject, generator: torch.Generator) -> torch.Tensor:
    """As many weights of the convolution as one lag has, anywhere among all of them."""
    channels, taps = subject.conv_channels, subject.d_conv
    removed = torch.zeros(channels * taps, dtype=torch.bool)
    removed[torch.randperm(len(removed), generator=generator)[:channels]] = True

    return removed.reshape(channels, taps).to(subject.device)


def swapped_states(
    bench: Bench,
    control: Bench,
    subject: MambaSubject,
    params: MambaInduction,
    arrays: Arrays,
) -> Report:
    """Out: the clean prompt continues from the control's scan state, against random directions of
    the same length.

    Back: the control continues from the clean scan state, against those of other prompts. The
    convolution's last inputs stay in place both times.
    """
    prompts = bench.prompts
    boundary = params.period  # BOS, then the first copy: its last token has been scanned
    generator = torch.Generator().manual_seed(params.seed + 1)

    clean = states(subject, subject.ids(prompts.tokens), boundary)
    empty = states(subject, subject.ids(prompts.control), boundary)
    report: Report = {}

    def out(layers: list[int]) -> Block:
        return with_state(subject, {at: empty[at] - clean[at] for at in layers}, boundary)

    def noise(layers: list[int]) -> Block:
        added = {at: random_direction(empty[at] - clean[at], generator) for at in layers}
        return with_state(subject, added, boundary)

    def back(layers: list[int], shift: int) -> Block:
        # shift 0 is the prompt's own state, any other that of another prompt
        added = {at: clean[at].roll(shift, 0) - empty[at] for at in layers}
        return with_state(subject, added, boundary)

    # Each other prompt's state once: there are no more controls than other prompts.
    rng = STREAMS.rng("other_states", params.seed)
    shifts = 1 + rng.permutation(len(prompts.tokens) - 1)[: params.causal_draws]

    for where, layers in layer_sets(subject).items():

        def draw(layers: list[int] = layers) -> Block:
            return noise(layers)

        removed, restored = bench.change(out(layers)), control.change(back(layers, 0))
        directions = bench.draws(draw, params, f"random states of {where}")
        others = [control.change(back(layers, int(shift))).mean(axis=0) for shift in shifts]

        report[where] = {
            "out": compared(bench, removed, directions, params),
            "back": compared(control, restored, np.stack(others), params, gain=True),
        }

        arrays |= {f"states/{where}/out": removed, f"states/{where}/back": restored}
        arrays[f"states/{where}/random out"] = directions
        arrays[f"states/{where}/random back"] = np.stack(others)

    return report


@torch.no_grad()
def on_new_tokens(
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
        right = (logits.argmax(dim=-1) == ids[:, 1:]).double()
        found.append(torch.stack([loss, right], dim=-1).cpu().numpy())

    counted = np.where(before[..., None], 0.0, np.concatenate(found)).sum(axis=1)
    return counted / (~before).sum(axis=1, keepdims=True)
