"""Mamba at mamba-130m's shape with random weights: the scan under the stock model, training, and
hidden attention.

mambapy's scan joins where it is installed (`pip install mambapy`).
"""

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from benchmarks.matmul import onednn_products
from benchmarks.measure import Row, Work, interleaved, peak_growth
from interp_core.loading import subject_of
from interp_core.mamba.hidden_attention import (
    attention_entries,
    effective_attention,
    mixer_calls,
    observing_mixers,
    stream_attention,
)
from interp_core.mamba.selective_scan import fast_scan
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.models.lens import to_transformer_lens
from interp_core.plotting import ABLATED, COPYING, INDUCTION, drawing

TITLE = "Mamba: 24 layers, width 768, state 16, T 256, batch 1"
LENGTH, SHORT, LAYERS = 256, 128, 24


@cache
def model(layers: int = LAYERS, *, mambapy: bool = False) -> MambaForCausalLM:
    """mamba-130m's shape."""
    torch.manual_seed(0)
    return MambaForCausalLM(
        MambaConfig(hidden_size=768, num_hidden_layers=layers, use_mambapy=mambapy)
    )


@cache
def subject() -> MambaSubject:
    """The same model as a subject of study."""
    return as_mamba(subject_of(model(), name="mamba-130m's shape", bos=0))


def ids(length: int = LENGTH) -> Tensor:
    """Random tokens."""
    return torch.randint(0, 50000, (1, length), generator=torch.Generator().manual_seed(0))


def forward(
    of: MambaForCausalLM, length: int = LENGTH, *, ours: bool = False, switch: bool = False
) -> Work:
    """A forward pass with logits."""
    tokens = ids(length)

    def run() -> None:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if switch:
                stack.enter_context(onednn_products())
            if ours:
                stack.enter_context(fast_scan(of))
            of.eval()(input_ids=tokens, use_cache=False)

    return run


def step(
    of: MambaForCausalLM, length: int = LENGTH, *, ours: bool = False, switch: bool = False
) -> Work:
    """Forward, loss and backward."""
    tokens = ids(length)

    def run() -> None:
        with ExitStack() as stack:
            if switch:
                stack.enter_context(onednn_products())
            if ours:
                stack.enter_context(fast_scan(of))
            of.train().requires_grad_(requires_grad=True)
            of(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            of.zero_grad(set_to_none=True)

    return run


def rows(repetitions: int) -> list[Row]:
    """Every row of the table."""
    return [
        *forward_rows(repetitions),
        *training_rows(repetitions),
        *attention_rows(repetitions),
        *scaling_rows(),
    ]


def forward_rows(repetitions: int) -> list[Row]:
    """The scan alone, and with the switch of products on either side."""
    works = {"stock": forward(model()), "ours": forward(model(), ours=True)}
    with onednn_products() as on:
        pass
    if on:
        works |= {
            "ours+": forward(model(), ours=True, switch=True),
            "stock+": forward(model(), switch=True),
        }
    for work in works.values():
        work()
    seconds = interleaved(works, repetitions=repetitions)
    found = [_against("forward", seconds, "ours", "stock", ">=1.4")]
    if on:
        found.append(
            _against("forward, ours with oneDNN's products", seconds, "ours+", "stock", ">=2.7")
        )
        found.append(_against("forward, both with oneDNN's products", seconds, "ours+", "stock+"))
    return found


def training_rows(repetitions: int) -> list[Row]:
    """A training step, its memory, and mambapy's scan where it is installed."""
    works = {"ours": step(model(), ours=True), "ours+": step(model(), ours=True, switch=True)}
    if importlib.util.find_spec("mambapy"):
        works["mambapy"] = step(model(mambapy=True))
    for work in works.values():
        work()
    seconds = interleaved(works, repetitions=repetitions)
    # The stock step takes tens of seconds: two layers fewer than all would hide nothing, so all are
    # run, once.
    seconds |= interleaved({"stock": step(model())}, repetitions=1)
    found = [
        _against("training step", seconds, "ours", "stock", ">=12"),
        _against("training step, ours with oneDNN's products", seconds, "ours+", "stock", ">=16"),
    ]
    if "mambapy" in seconds:
        found.append(
            _against("training step against mambapy's scan", seconds, "ours", "mambapy", ">=1.8")
        )
        found.append(
            _against("the same, ours with oneDNN's products", seconds, "ours+", "mambapy", ">=2.6")
        )
    ours, stock = (
        peak_growth("benchmarks.mamba", case) for case in ("memory_ours", "memory_stock")
    )
    what = "memory growth of a training step"
    return [*found, Row(what, f"{ours:.0f} MiB", f"{stock:.0f} MiB", ours / stock, "<=0.5")]


def memory_ours() -> Work:
    """A training step with our scan, gradients of weights included; the kernels are compiled
    before.
    """
    step(model(1), length=8, ours=True)()
    return step(model(), ours=True)


def memory_stock() -> Work:
    """The same with the stock scan."""
    step(model(1), length=8)()
    return step(model())


def attention_rows(repetitions: int) -> list[Row]:
    """Wanted pairs against whole matrices elsewhere, streamed maps against a forward pass,
    effective attention.
    """
    calls = mixer_calls(subject(), ids(SHORT))
    period = SHORT // 2 - 1
    query = torch.arange(period + 1, 2 * period)
    batch, key = torch.zeros_like(query), query - period + 1

    def pairs() -> None:
        for call in calls:
            attention_entries(call, batch, query, key)

    bridge = to_transformer_lens(subject())
    for block in bridge.blocks:
        block.mixer.eager_scan = True
    _, cache_of = bridge.run_with_cache(ids(SHORT), use_cache=False)

    def theirs() -> None:
        bridge.blocks[0].mixer.compute_effective_attention(cache_of, 0, include_dt_scaling=True)

    pairs()
    seconds = interleaved({"pairs": pairs, "theirs": theirs}, repetitions=1)
    a_layer = seconds["pairs"] / LAYERS
    found = [
        Row(
            f"{len(query)} induction pairs, all channels, a layer at T {SHORT}, against "
            "TransformerLens's whole matrix",
            f"{a_layer * 1e3:.2f} ms",
            f"{seconds['theirs']:.2f} s",
            seconds["theirs"] / a_layer,
            ">=500",
        )
    ]
    del bridge, cache_of
    ours, whole = (
        peak_growth("benchmarks.mamba", case) for case in ("memory_pairs", "memory_matrix")
    )
    found.append(
        Row(
            "memory growth of the last",
            f"{ours:.1f} MiB",
            f"{whole:.0f} MiB",
            whole / max(ours, 0.1),
            ">=10",
        )
    )
    return [*found, *_streamed_rows(repetitions)]


def _streamed_rows(repetitions: int) -> list[Row]:
    period = LENGTH // 2 - 1
    query = np.arange(period + 1, 2 * period)
    batch, key = np.zeros_like(query), query - period + 1

    def look(_: int, call: Any) -> None:
        stream_attention(call, batch=batch, query=query, key=key, group=batch, groups=1)

    calls = mixer_calls(subject(), ids())

    def maps() -> None:
        for layer, call in enumerate(calls):
            look(layer, call)

    def with_forward() -> None:
        with torch.no_grad(), observing_mixers(subject(), look):
            subject().trunk(ids())

    works = {"maps": maps, "stock": forward(model()), "all": with_forward}
    maps()
    seconds = interleaved(works, repetitions=repetitions)
    found = [
        _ratio(
            "streamed maps and scores of all channels, 24 layers, against a stock forward",
            seconds,
            "maps",
            "<=1.4",
        ),
        _ratio("the same, our forward included", seconds, "all"),
    ]
    weight = subject().mixer(0).out_proj.weight.detach()
    some = torch.tensor([LENGTH - 1, LENGTH // 2])
    work = {"E": lambda: effective_attention(calls[0], weight, torch.zeros_like(some), some)}
    cost = interleaved(work, repetitions=repetitions)["E"] / len(some)
    what = "effective attention, a layer and query (sample: queries 255 and 128 of 256)"
    return [*found, Row(what, f"{cost * 1e3:.0f} ms", "", float("nan"))]


def memory_pairs() -> Work:
    """One layer's pairs."""
    call = mixer_calls(subject(), ids(SHORT))[0]
    query = torch.arange(64, 126)
    work = lambda: attention_entries(call, torch.zeros_like(query), query, query - 62)  # noqa: E731
    work()
    return work


def memory_matrix() -> Work:
    """One layer's matrix as TransformerLens makes it."""
    bridge = to_transformer_lens(subject())
    bridge.blocks[0].mixer.eager_scan = True
    _, cache_of = bridge.run_with_cache(ids(SHORT), use_cache=False)
    return lambda: bridge.blocks[0].mixer.compute_effective_attention(
        cache_of, 0, include_dt_scaling=True
    )


def scaling_rows(lengths: tuple[int, ...] = (256, 512, 1024)) -> list[Row]:
    """Exponent of time in length, by least squares on logarithms; the stock backward on the first
    two lengths of two layers.
    """
    found = []
    curves: dict[str, tuple[tuple[int, ...], list[float]]] = {}
    kinds: dict[str, tuple[Callable[..., Work], bool, tuple[int, ...]]] = {
        "forward, ours": (forward, True, lengths),
        "training step, ours": (step, True, lengths),
        "training step, stock": (step, False, lengths[:2]),
    }
    for name, (work, ours, at) in kinds.items():
        seconds = []
        for length in at:
            run = work(model(2), length=length, ours=ours)
            run() if ours else None
            seconds.append(interleaved({"run": run}, repetitions=3 if ours else 1)["run"])
        curves[name] = (at, seconds)
        exponent = float(np.polyfit(np.log(at), np.log(seconds), 1)[0])
        shown = ", ".join(f"{value:.2f} s" for value in seconds)
        target = "<=1.1" if ours else ""
        found.append(
            Row(f"exponent in length, {name}, T {at}, two layers", shown, "", exponent, target)
        )
    _draw(curves)
    return found


def _draw(curves: dict[str, tuple[tuple[int, ...], list[float]]]) -> None:
    """The times of scaling_rows over length, both on logarithmic axes, beside this file."""
    with drawing(Path(__file__).with_name("mamba_scaling.png"), width=7, height=5) as figure:
        axes = figure.add_subplot()
        for (name, (lengths, seconds)), colour in zip(
            curves.items(), (INDUCTION, COPYING, ABLATED), strict=True
        ):
            axes.loglog(lengths, seconds, marker="o", color=colour, label=name)
        axes.set_xticks([256, 512, 1024], ["256", "512", "1024"])
        axes.set_yticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
        axes.minorticks_off()
        axes.set_xlabel("length of the sequence, tokens")
        axes.set_ylabel("processor time, s")
        axes.set_title("Two layers, mamba-130m's shape, one thread")
        axes.legend()


def _against(what: str, seconds: dict[str, float], ours: str, theirs: str, target: str = "") -> Row:
    return Row(
        what,
        f"{seconds[ours]:.2f} s",
        f"{seconds[theirs]:.2f} s",
        seconds[theirs] / seconds[ours],
        target,
    )


def _ratio(what: str, seconds: dict[str, float], ours: str, target: str = "") -> Row:
    ratio = seconds[ours] / seconds["stock"]
    return Row(what, f"{seconds[ours]:.2f} s", f"{seconds['stock']:.2f} s", ratio, target)
