"""A user's project for mamba_induction, small: a text, a Mamba and a transformer with random
weights, a profile.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from click.testing import CliRunner
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

import small_models as small
from mamba_induction.cli import main
from small_project import build_corpus, corpus_tokenizer, save_model


def random_mamba(*, seed: int, vocab: int = 96, **changes: Any) -> PreTrainedModel:
    """Two layers, 64 channels, 4 states."""
    sizes = {
        "hidden_size": 32,
        "state_size": 4,
        "num_hidden_layers": 2,
        "expand": 2,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = MambaConfig(
            vocab_size=vocab, bos_token_id=0, eos_token_id=0, pad_token_id=0, **(sizes | changes)
        )
        return MambaForCausalLM(config).eval()


def smoke_section(**changes: Any) -> dict[str, Any]:
    """The study's settings in profile smoke, with changes."""
    smoke = yaml.safe_load((Path(__file__).parents[1] / "profiles" / "smoke.yaml").read_text())
    return smoke["mamba_induction"] | changes


def write_profile(folder: Path, models: dict[str, Any], **changes: Any) -> None:
    """params.yaml and the only profile, tests.yaml."""
    content = {"models": models, "mamba_induction": smoke_section(**changes)}
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    (folder / "profiles" / "tests.yaml").write_text(yaml.safe_dump(content))
    (folder / "params.yaml").write_text("profile: tests\n")


def build_project(folder: Path) -> Path:
    """data/corpus for its tokenizer, models/mamba and models/twin, and a data set of click's
    documentation.
    """
    build_corpus(folder / "data" / "corpus")
    tokenizer = corpus_tokenizer(folder / "data" / "corpus")
    save_model(folder / "models" / "mamba", random_mamba(seed=1, vocab=512), tokenizer)
    twin = small.build(
        "gpt_neox", seed=2, vocab_size=512, num_hidden_layers=2, max_position_embeddings=256
    )
    save_model(folder / "models" / "twin", twin, tokenizer)
    models = {name: {"source": "local", "path": f"models/{name}"} for name in ("mamba", "twin")}
    write_profile(folder, models, model="mamba", twin="twin")
    return folder


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str


def mamba_induction(*arguments: object) -> Said:
    """`mamba-induction` with these arguments, in this process and the working directory."""
    result = CliRunner().invoke(
        main, [str(argument) for argument in arguments], catch_exceptions=False
    )
    return Said(result.exit_code, result.stdout, result.stderr)
