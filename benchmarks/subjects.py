"""What is measured: models of Pythia's shapes, weights random, and prompts of an exact length."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from interp_core.loading import load_model, subject_of
from interp_core.models.native import NativeSubject
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import Subject
from interp_core.stimuli.prompts import Prompts, Vocabulary, repeated_tokens

SHAPES = {
    "pythia-70m": {
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "hidden_size": 512,
        "intermediate_size": 2048,
    },
    "pythia-410m": {
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_size": 1024,
        "intermediate_size": 4096,
    },
}
TRAINED = Path("data/models")


@cache
def random_subject(name: str) -> NativeSubject:
    """A model of that shape; vocabulary, context and (by default) rotary share are Pythia's."""
    torch.manual_seed(0)
    shape = SHAPES[name]
    config = GPTNeoXConfig(
        vocab_size=50304,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        num_hidden_layers=shape["num_hidden_layers"],
        num_attention_heads=shape["num_attention_heads"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
    )
    subject = subject_of(GPTNeoXForCausalLM(config), name=name)
    assert isinstance(subject, NativeSubject)
    return subject


def trained_subjects() -> list[Subject]:
    """The reference models, where they have been trained."""
    folders = sorted(TRAINED.glob("neox-*"))
    return [
        load_model(ModelSpec(source="local", path=folder), name=folder.name) for folder in folders
    ]


def prompts_of_length(
    length: int, n_prompts: int, *, vocab_size: int = 50304, period: int | None = None
) -> Prompts:
    """Random tokens in two copies, padded to exactly `length`."""
    vocabulary = Vocabulary.of(vocab_size, bos=0, pad=0)
    half = (length - 1) // 2 if period is None else period
    prompts = repeated_tokens(
        vocabulary, period=half, n_prompts=n_prompts, rng=np.random.default_rng(0)
    )
    missing = ((0, 0), (0, length - prompts.tokens.shape[1]))
    return replace(
        prompts, tokens=np.pad(prompts.tokens, missing), control=np.pad(prompts.control, missing)
    )
