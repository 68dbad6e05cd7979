"""Effects of single channels at mamba-130m's shape with random weights: exact, estimated, and
calibrated.
"""

from contextlib import nullcontext

import numpy as np
import torch

from benchmarks.mamba import model as stock_model
from benchmarks.mamba import subject
from benchmarks.matmul import onednn_products
from benchmarks.measure import Row, Work, interleaved, peak_growth
from interp_core.files.params import read_section
from mamba_neurons.data import Texts
from mamba_neurons.intervene import neuron_effects
from mamba_neurons.intervene_estimates import estimate_all, whole_model
from mamba_neurons.measure_activity import activations
from mamba_neurons.measure_sparsity import stream_all, summarise
from mamba_neurons.model import Model, neuron_means
from mamba_neurons.params import MambaNeurons

TITLE = "Channel effects: 24 layers, width 768, one text, mean ablation (a sample of layers timed)"
LAYERS = (0, 5, 11, 17, 23)  # their mean suffix is that of all layers
ROWS = 1024  # copies times positions in a batch: products of matrices are fastest from here on
FEW, MORE = (
    1,
    3,
)  # batches of channels a layer; the difference is what a channel costs once the clean run is there


def one_text(length: int) -> Texts:
    """Random tokens."""
    tokens = np.random.default_rng(0).integers(1, 50000, size=(1, length))
    return Texts(
        tokens, np.array([length]), np.arange(length)[None] < length - 1, np.zeros(1, dtype=bool), 0
    )


def settings(**changes: object) -> MambaNeurons:
    """The paper profile's, on this text."""
    return read_section("mamba_neurons", MambaNeurons, "paper").model_copy(update=changes)


def stack_of(length: int) -> int:
    """Channels in a batch."""
    return max(16, ROWS // length)


def rows(repetitions: int) -> list[Row]:
    """Every claim that fits into minutes; the sweep of all channels is extrapolated from the
    sample.
    """
    model = Model(subject())
    found = []
    for length, plain, switched in ((32, ">=5", ">=7.5"), (128, ">=4", ">=7")):
        found += exact_rows(model, length, plain, switched, repetitions)
    found += estimate_rows(model, repetitions)
    return [*found, mixture_row(model), *stream_rows()]


def stock_forward(length: int) -> Work:
    """What a user without any of this pays for each channel: a forward pass of the authors' code
    with logits.
    """
    ids = torch.as_tensor(one_text(length).tokens)

    def run() -> None:
        with torch.no_grad():
            stock_model()(input_ids=ids, use_cache=False)

    return run


def exact_of_sample(model: Model, length: int, batches: int, *, switch: bool) -> Work:
    """Exact effects of some channels of some layers."""
    texts, params = one_text(length), settings(stack=stack_of(length))
    channels = batches * params.stack
    means = neuron_means(model, texts, 1)

    def run() -> None:
        with onednn_products() if switch else nullcontext():
            for layer in LAYERS:
                neuron_effects(model, texts, layer, range(channels), params, means=means)

    return run


def exact_rows(model: Model, length: int, plain: str, switched: str, repetitions: int) -> list[Row]:
    """Ours against one stock forward a channel."""
    works = {"stock": stock_forward(length)}
    for batches in (FEW, MORE):
        works[f"ours {batches}"] = exact_of_sample(model, length, batches, switch=False)
        works[f"switch {batches}"] = exact_of_sample(model, length, batches, switch=True)
    works[f"ours {FEW}"]()
    seconds = interleaved(works, repetitions=max(1, repetitions // 2))
    each = {
        way: (seconds[f"{way} {MORE}"] - seconds[f"{way} {FEW}"])
        / (len(LAYERS) * (MORE - FEW) * stack_of(length))
        for way in ("ours", "switch")
    }
    stock = seconds["stock"]
    label = f"exact effect of a channel against a stock forward, T {length}"
    return [
        Row(
            label,
            f"{1e3 * each['ours']:.0f} ms",
            f"{1e3 * stock:.0f} ms",
            stock / each["ours"],
            plain,
        ),
        Row(
            f"{label}, oneDNN",
            f"{1e3 * each['switch']:.0f} ms",
            f"{1e3 * stock:.0f} ms",
            stock / each["switch"],
            switched,
        ),
    ]


def estimate_rows(model: Model, repetitions: int) -> list[Row]:
    """Estimates of all channels, in forward passes of the fast model with logits."""
    texts = one_text(128)
    means = neuron_means(model, texts, 1)
    ids = torch.as_tensor(texts.tokens)

    def forward() -> None:
        with torch.no_grad():
            model.subject.logits(ids)

    def estimate(draws: int) -> Work:
        params = settings(label_draws=draws)
        return lambda: estimate_all(
            model, texts, params, means=means, generator=torch.Generator().manual_seed(0)
        )

    def first_order() -> None:
        from mamba_neurons.intervene_estimates import gradients

        gradients(model, texts, draws=0, generator=torch.Generator())

    works = {"forward": forward, "first order": first_order, "fisher": estimate(8)}
    first_order()
    seconds = interleaved(works, repetitions=max(1, repetitions // 2))
    passes = {name: seconds[name] / seconds["forward"] for name in ("first order", "fisher")}
    unit = f"{seconds['forward']:.2f} s"
    return [
        Row(
            "first-order estimate of all channels, in forwards",
            f"{seconds['first order']:.2f} s",
            unit,
            passes["first order"],
            "<=3",
        ),
        Row(
            "Fisher estimate, 8 draws, in forwards",
            f"{seconds['fisher']:.2f} s",
            unit,
            passes["fisher"],
            "<=24",
        ),
    ]


def mixture_row(model: Model) -> Row:
    """The calibrated recipe of the whole model against one stock forward a channel, T 32."""
    texts = one_text(32)
    params = settings(calibration_channels=24, stack=stack_of(32))
    kept: list[int] = []

    def recipe() -> None:
        whole = whole_model(
            model, texts, params, np.random.default_rng(0), measures=("kl",), top_k=200
        )
        kept[:] = [len(whole.exact_layers), int(whole.exact.sum())]

    seconds = interleaved({"stock": stock_forward(32), "recipe": recipe}, repetitions=1)
    naive = seconds["stock"] * model.n_layers * model.n_neurons
    label = (
        f"calibrated recipe, whole model, T 32 ({kept[0]} layers exact, {kept[1]} channels exact)"
    )
    return Row(
        label, f"{seconds['recipe']:.0f} s", f"{naive:.0f} s", naive / seconds["recipe"], ">=12"
    )


def stream_rows() -> list[Row]:
    """Every measure of sparsity in every layer: memory and time for 10,000 tokens against 1,000."""
    few, many = (
        peak_growth("benchmarks.neurons", case)
        for case in ("sparsity_of_1000", "sparsity_of_10000")
    )
    works = {"few": sparsity_of_1000(), "many": sparsity_of_10000()}
    seconds = interleaved(works, repetitions=1)
    what = "all measures of sparsity, 24 layers, 10,000 tokens against 1,000"
    return [
        Row(f"memory of {what}", f"{many:.0f} MiB", f"{few:.0f} MiB", many / few, "<=1.1"),
        Row(
            "time of the same",
            f"{seconds['many']:.0f} s",
            f"{seconds['few']:.0f} s",
            seconds["many"] / seconds["few"],
        ),
    ]


def sparsity_of_1000() -> Work:
    """All layers' channels over 16 texts, one for each group that intervals are drawn from."""
    return sparsity_of(16)


def sparsity_of_10000() -> Work:
    """All layers' channels over 160 texts."""
    return sparsity_of(160)


def sparsity_of(n_texts: int) -> Work:
    """What `mamba-neurons sparsity` does with the channels of all layers and texts of 63 tokens."""
    model, params = Model(subject()), settings()
    tokens = np.random.default_rng(0).integers(1, 50000, size=(n_texts, 63))
    lengths = np.full(n_texts, 63)
    texts = Texts(
        tokens, lengths, np.arange(63) < lengths[:, None] - 1, np.zeros(n_texts, dtype=bool), 0
    )
    layers = range(model.n_layers)

    def run() -> None:
        streams = stream_all(
            activations(model, texts, layers, ("inner",), params.batch_size),
            n_texts=n_texts,
            groups=params.text_groups,
            thresholds=(params.mamba_threshold, params.transformer_threshold),
            share=params.near_zero,
        )
        rng = np.random.default_rng(0)
        for stream in streams.values():
            summarise(
                stream,
                percentiles=params.percentiles,
                target=params.target_sparsity,
                resamples=params.bootstrap_resamples,
                lifetime_draws=params.lifetime_draws,
                rng=rng,
            )

    return run
