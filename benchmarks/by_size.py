"""`python -m benchmarks.by_size`: what one model costs, by its size, for examples/cluster.md.

No comparison with a peer, so no claim of `make bench`. A training step as the loop takes it, and a
checkpoint as `induct emergence` scores it, on one thread: seconds of the processor, which other
work on the machine changes little, and the peak of memory. Larger sizes are computed from these.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Pythia's architecture (Biderman et al. 2023): layers, heads, width. Measured ones first.
MEASURED = {"14m": (6, 4, 128), "70m": (6, 8, 512), "160m": (12, 12, 768)}
COMPUTED = {
    "410m": (24, 16, 1024),
    "1b": (16, 8, 2048),
    "1.4b": (24, 16, 2048),
    "2.8b": (32, 32, 2560),
    "6.9b": (32, 32, 4096),
    "12b": (36, 40, 5120),
}
VOCABULARY = 50304
CHECKPOINTS = 154  # of each size

ROWS, LENGTH = 4, 256  # of a training batch
PROMPTS, PERIOD = 64, 50  # profile paper: causal_sequences, period


def parameters(layers: int, width: int) -> tuple[int, int]:
    """Weights of a size: all, and those that multiply a token (the embedding only looks up)."""
    block = 12 * width**2 + 13 * width
    unembedding = VOCABULARY * width
    return layers * block + 2 * unembedding + 2 * width, layers * block + unembedding


def scoring(layers: int, _heads: int, width: int) -> float:
    """Operations of scoring one checkpoint: blocks on prompts and controls, two a weight and token.

    The unembedding runs on the copies of the prompts alone.
    """
    unembedding = VOCABULARY * width
    _, active = parameters(layers, width)
    tokens = 2 * PROMPTS * (2 * PERIOD + 1)
    return 2 * ((active - unembedding) * tokens + unembedding * PROMPTS * PERIOD)


def measure(name: str) -> dict[str, float]:
    """One size, in this process."""
    import numpy as np
    import torch

    from interp_core.loading import load_model
    from interp_core.measures.scores import score_heads
    from interp_core.models.spec import ModelSpec
    from interp_core.stimuli.prompts import Vocabulary, repeated_tokens
    from interp_core.training.reference_models import Architecture, Shape, new_model

    torch.set_num_threads(1)
    layers, heads, width = MEASURED[name]
    shape = Shape(layers=layers, heads=heads, width=width)
    architecture = Architecture(
        context=2048, mlp_ratio=4, rotary_share=0.25, initializer_range=0.02
    )
    found: dict[str, float] = {}

    with tempfile.TemporaryDirectory() as folder:
        model = new_model(shape, architecture, VOCABULARY, seed=0)
        # As on the hub: half precision.
        model.half().save_pretrained(folder)
        _tokenizer(Path(folder))
        del model

        began = time.process_time()
        spec = ModelSpec(source="local", path=Path(folder))
        subject = load_model(spec, name=name)
        found["load"] = time.process_time() - began

    vocabulary = Vocabulary.of(VOCABULARY, bos=0, pad=0)
    prompts = repeated_tokens(
        vocabulary, period=PERIOD, n_prompts=PROMPTS, rng=np.random.default_rng(0)
    )
    keys = {
        "prefix_matching": prompts.pairs.induction_key,
        "previous_token": prompts.pairs.previous_key,
    }
    began = time.process_time()
    score_heads(subject, prompts.tokens, prompts.pairs, keys, batch_size=8, behaviour=True)
    control = {"prefix_matching": prompts.pairs.induction_key}
    score_heads(subject, prompts.control, prompts.pairs, control, batch_size=8)
    found["score"] = time.process_time() - began
    found["score_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    del subject
    trained = new_model(shape, architecture, VOCABULARY, seed=0).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH))
    for step in range(3):
        if step == 1:  # the first makes the optimiser's memory
            began = time.process_time()
        optimizer.zero_grad()
        trained(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    found["train"] = (time.process_time() - began) / 2 / (ROWS * LENGTH) * 1000
    found["train_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<|endoftext|>": 0, "word": 1}
    made = Tokenizer(WordLevel(words, unk_token="word"))
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|endoftext|>").save_pretrained(
        folder
    )


def tables() -> str:
    """All sizes as Markdown; what is computed is marked."""
    found = {}
    for name in MEASURED:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.by_size", name],
            capture_output=True,
            text=True,
            check=True,
        )
        found[name] = json.loads(done.stdout)

    # Operations a second of the largest that was measured; six a weight and token to train.
    largest = list(MEASURED)[-1]
    _, active = parameters(MEASURED[largest][0], MEASURED[largest][2])
    score_rate = scoring(*MEASURED[largest]) / found[largest]["score"]
    train_rate = 6 * active * 1000 / found[largest]["train"]
    every, _ = parameters(MEASURED[largest][0], MEASURED[largest][2])
    load_rate = every / found[largest]["load"]

    lines = [
        "| size | weights | train: s per 1,000 tokens | train: memory | checkpoint: load, s "
        "| checkpoint: score, s | checkpoint: memory | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total = 0.0
    for name, (layers, heads, width) in (MEASURED | COMPUTED).items():
        every, active = parameters(layers, width)
        if name in found:
            one, mark = found[name], ""
        else:
            mark = "~"
            one = {
                "load": every / load_rate,
                "score": scoring(layers, heads, width) / score_rate,
                "train": 6 * active * 1000 / train_rate,
                # Weights, gradients and AdamW's two moments in float32, and what the largest
                # measured one took beside them.
                "train_memory": 16 * every + _beside(found[largest]["train_memory"], 16),
                "score_memory": 4 * every + _beside(found[largest]["score_memory"], 4),
            }
        if name != "14m":
            total += CHECKPOINTS * (one["load"] + one["score"])
        lines.append(
            f"| {name} | {every / 1e6:,.0f} M | {mark}{one['train']:,.2f} "
            f"| {mark}{one['train_memory'] / 1e9:,.1f} GB | {mark}{one['load']:,.1f} "
            f"| {mark}{one['score']:,.0f} | {mark}{one['score_memory'] / 1e9:,.1f} GB "
            f"| {2 * every / 1e9:,.2f} GB |"
        )
    lines += [
        "",
        f"Scoring {score_rate / 1e9:.0f} and training {train_rate / 1e9:.0f} thousand million "
        f"operations a second on one thread. {CHECKPOINTS} checkpoints of eight sizes: "
        f"{total / 3600:,.0f} hours of one thread.",
    ]
    return "\n".join(lines)


def _beside(memory: float, per_weight: int) -> float:
    """Memory of the largest measured one without its weights and what goes with them."""
    largest = list(MEASURED)[-1]
    every, _ = parameters(MEASURED[largest][0], MEASURED[largest][2])
    return max(memory - per_weight * every, 0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        print(tables())
