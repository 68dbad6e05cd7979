"""The training loop's tokens a second against the matrix products it cannot do without."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks.measure import Row, interleaved
from interp_core.training.live_run import Run
from interp_core.training.loop import Moment, train
from interp_core.training.recipe import Recipe

TITLE = "Training: tokens/s against the same loop's bare matrix products"
ROWS, LENGTH, STEPS, VOCAB, WIDTH, LAYERS, HEADS = 32, 64, 10, 512, 128, 4, 4


def model() -> nn.Module:
    """The smallest reference model's shape."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=256,
    )
    return GPTNeoXForCausalLM(config)


def loop() -> None:
    """STEPS updates by the shared loop."""
    recipe = Recipe(
        steps=STEPS,
        learning_rate=1e-3,
        final_share=0.1,
        warmup=1,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        clip=1.0,
        precision="fp32",
        device="cpu",
        threads=torch.get_num_threads(),
        checkpoint_every=STEPS,
        checkpoint_also=(),
        save_seconds=1e9,
    )
    ids = torch.randint(0, VOCAB, (ROWS, LENGTH))

    def nothing(_: Moment) -> Mapping[str, float]:
        return {}

    train(
        model(),
        lambda step: (ids, ids),
        nothing,
        recipe,
        scratch=None,
        run=Run(None),
        label="benchmark",
    )


def products() -> None:
    """Every product of STEPS updates, forward and backward, on operands that are there already."""
    tokens = ROWS * LENGTH
    shapes = [
        (WIDTH, 3 * WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, 4 * WIDTH),
        (4 * WIDTH, WIDTH),
    ] * LAYERS + [(WIDTH, VOCAB)]
    operands = [
        (torch.randn(tokens, i), torch.randn(i, o), torch.randn(tokens, o)) for i, o in shapes
    ]
    q = torch.randn(ROWS * HEADS, LENGTH, WIDTH // HEADS)
    scores = torch.randn(ROWS * HEADS, LENGTH, LENGTH)
    for _ in range(STEPS):
        for x, weight, gradient in operands:
            _ = x @ weight, gradient @ weight.T, x.T @ gradient
        for _ in range(LAYERS):
            attention(q, scores)


def attention(q: Tensor, scores: Tensor) -> None:
    """Two products forward, four backward."""
    for _ in range(3):
        _ = q @ q.transpose(1, 2), scores @ q


def rows(repetitions: int) -> list[Row]:
    """Reported, no target."""
    loop()
    products()
    seconds = interleaved({"loop": loop, "products": products}, repetitions=repetitions)
    a, b = (STEPS * ROWS * LENGTH / seconds[name] for name in ("loop", "products"))
    what = f"{LAYERS} layers, d {WIDTH}, {ROWS} x {LENGTH} tokens"
    return [Row(what, f"{a:,.0f} tokens/s", f"{b:,.0f} tokens/s", b / a)]
