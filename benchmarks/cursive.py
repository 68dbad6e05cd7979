"""The cursive transformer: sampling with a cache, scores without patterns, and training against
bare products.
"""

import torch
from torch import Tensor

from benchmarks.measure import Row, interleaved
from cursive_circuits.model import CursiveTransformer
from cursive_circuits.model_shape import Shape
from cursive_circuits.model_watching import observing
from interp_core.training.batches import IGNORED

TITLE = "cursive_circuits: sampling, all-head scores, training"
VOCABULARY, ALPHABET, WIDTH, LAYERS, HEADS, ROWS, LENGTH, SAMPLED, STEPS = (
    139,
    27,
    64,
    4,
    4,
    16,
    120,
    400,
    5,
)


def model() -> CursiveTransformer:
    """The laptop configuration with random weights."""
    shape = Shape(
        layers=LAYERS,
        heads=HEADS,
        d_model=WIDTH,
        context=420,
        characters=50,
        positions="rotary",
        rotary_base=1000.0,
        initializer_range=0.08,
        text_range=1.0,
        gelu="none",
        mask_padding=True,
    )
    return CursiveTransformer(shape, vocabulary=VOCABULARY, alphabet=ALPHABET, seed=0)


LEARNER = model()
IDS = torch.randint(VOCABULARY, (ROWS, SAMPLED), generator=torch.Generator().manual_seed(0))
TEXT = torch.randint(1, ALPHABET, (ROWS, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def cached(rows: int) -> Tensor:
    """Logits of rows that grow token by token, from the cache."""
    ids, text, cache = IDS[:rows], TEXT[:rows], LEARNER.empty_cache(rows, SAMPLED)
    return torch.cat(
        [LEARNER(ids[:, t : t + 1], text, cache=cache).logits for t in range(SAMPLED)], dim=1
    )


@torch.no_grad()
def again(rows: int) -> Tensor:
    """The same, the whole prefix run again for every token."""
    ids, text = IDS[:rows], TEXT[:rows]
    return torch.cat([LEARNER(ids[:, : t + 1], text).logits[:, -1:] for t in range(SAMPLED)], dim=1)


@torch.no_grad()
def scores() -> None:
    """One forward with one entry of attention read for every head and query."""
    with observing(LEARNER) as seen:
        LEARNER(IDS, TEXT)
    row, query = (
        part.reshape(-1)
        for part in torch.meshgrid(torch.arange(ROWS), torch.arange(200, SAMPLED), indexing="ij")
    )
    for layer in range(LAYERS):
        seen[layer, "self"].call.entries(row, query, (query - 199)[None])


@torch.no_grad()
def forward() -> None:
    """One fused forward."""
    LEARNER(IDS, TEXT)


def training() -> None:
    """STEPS updates of a batch as the laptop profile has them."""
    learner = model()
    optimizer = torch.optim.AdamW(learner.parameters(), fused=True)
    ids = IDS[:, :LENGTH]
    for _ in range(STEPS):
        logits = learner(ids, TEXT).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=IGNORED
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def products() -> None:
    """The products of forward and backward that such updates cannot do without."""
    tokens = ROWS * LENGTH
    one = [
        (WIDTH, 3 * WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, 4 * WIDTH),
        (4 * WIDTH, WIDTH),
    ]
    operands = [
        (torch.randn(tokens, i), torch.randn(i, o), torch.randn(tokens, o))
        for i, o in [*one * LAYERS, (WIDTH, VOCABULARY)]
    ]
    q, weights = (
        torch.randn(ROWS * HEADS, LENGTH, WIDTH // HEADS),
        torch.randn(ROWS * HEADS, LENGTH, LENGTH),
    )
    for _ in range(STEPS):
        for x, weight, gradient in operands:
            _ = x @ weight, gradient @ weight.T, x.T @ gradient
        for _ in range(3 * LAYERS):
            _ = q @ q.transpose(1, 2), weights @ q


def sampling_row(n: int, repetitions: int) -> Row:
    """A row that grows to SAMPLED tokens, `n` at once."""
    seconds = interleaved(
        {"ours": lambda: cached(n), "theirs": lambda: again(n)}, repetitions=repetitions
    )
    return Row(
        f"{SAMPLED} tokens, rows at once: {n}: cache against the prefix again",
        f"{seconds['ours']:.2f} s",
        f"{seconds['theirs']:.2f} s",
        seconds["theirs"] / seconds["ours"],
        ">=10",
    )


def rows(repetitions: int) -> list[Row]:
    """Ratios of the claims; the largest difference of logits beside the first."""
    difference = float((cached(ROWS) - again(ROWS)).abs().max())
    sampling = [sampling_row(n, min(repetitions, 1)) for n in (ROWS, 4, 1)]
    for work in (scores, forward, training, products):
        work()
    passes = interleaved({"scores": scores, "forward": forward}, repetitions=3 * repetitions)
    updates = interleaved({"training": training, "products": products}, repetitions=repetitions)
    speed = {name: STEPS * ROWS * LENGTH / seconds for name, seconds in updates.items()}
    return [
        *sampling,
        Row("largest difference of their logits", f"{difference:.1e}", "", difference, "<=1e-5"),
        Row(
            f"scores of all heads against one fused forward, T {SAMPLED}",
            f"{passes['scores'] * 1e3:.0f} ms",
            f"{passes['forward'] * 1e3:.0f} ms",
            passes["scores"] / passes["forward"],
            "<=1.1",
        ),
        Row(
            f"training, {ROWS} x {LENGTH} tokens, against bare products",
            f"{speed['training']:,.0f} tokens/s",
            f"{speed['products']:,.0f} tokens/s",
            speed["products"] / speed["training"],
        ),
    ]
