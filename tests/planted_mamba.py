"""Mambas whose truth we know: one channel that carries every answer, one channel that forgets
slowly.
"""

from typing import Any

import numpy as np
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from interp_core.loading import subject_of
from interp_core.mamba.subject import MambaSubject, as_mamba
from mamba_neurons.data import Texts
from mamba_neurons.model import Model

VOCAB, WIDTH, LAYERS, STATES = 24, 16, 2, 4
CARRIER = (1, 11)  # layer, channel


def random_mamba(
    seed: int = 0,
    *,
    layers: int = LAYERS,
    vocab: int = VOCAB,
    scale: float = 0.5,
    biases: bool = False,
) -> Any:
    """A small Mamba with random weights, large enough for its channels to matter; its projections
    have biases where asked for.
    """
    config = MambaConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        state_size=STATES,
        num_hidden_layers=layers,
        initializer_range=scale,
        use_bias=biases,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return _seeded(MambaForCausalLM, config, seed)


def random_mamba2(seed: int = 0, *, layers: int = LAYERS, vocab: int = VOCAB) -> Any:
    """The same width as a Mamba-2: four heads of eight channels in two groups."""
    config = Mamba2Config(
        vocab_size=vocab,
        hidden_size=WIDTH,
        state_size=STATES,
        num_hidden_layers=layers,
        num_heads=4,
        head_dim=8,
        n_groups=2,
        initializer_range=0.5,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    )
    return _seeded(Mamba2ForCausalLM, config, seed)


def _seeded(model: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(config).eval()


@torch.no_grad()
def carrier_mamba() -> Any:
    """One channel (CARRIER) has a step size of order 1, is read through its scan alone and writes
    the answer; all others have next to no step and write next to nothing.
    """
    model = random_mamba(seed=3)
    layer, channel = CARRIER
    blocks: Any = model.backbone.layers
    for block in blocks:
        block.mixer.dt_proj.bias.fill_(-8.0)
        block.mixer.dt_proj.weight.mul_(0.01)
        block.mixer.out_proj.weight.mul_(1e-3)
    mixer = blocks[layer].mixer
    mixer.dt_proj.bias[channel] = 1.0
    mixer.D[channel] = 0.0
    mixer.out_proj.weight[:, channel] = 3.0 * torch.randn(
        WIDTH, generator=torch.Generator().manual_seed(1)
    )
    model.lm_head.weight.mul_(4.0)
    return model


def model_of(module: Any, name: str = "planted") -> Model:
    """As the study sees it."""
    return Model(subject_of(module, name=name, bos=0))


def mamba_of(model: Model) -> MambaSubject:
    """Its subject, known to be a Mamba."""
    return as_mamba(model.subject)


def random_texts(
    *, n: int = 8, length: int = 12, vocab: int = VOCAB, seed: int = 0, ragged: bool = True
) -> Texts:
    """Random ids of several lengths, padded with BOS."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length // 2, length + 1, size=n) if ragged else np.full(n, length)
    tokens = rng.integers(1, vocab, size=(n, length))
    tokens[:, 0] = 0
    place = np.arange(length)
    tokens[place >= lengths[:, None]] = 0
    return Texts(tokens, lengths, place < lengths[:, None] - 1, np.zeros(n, dtype=bool), 0)


@torch.no_grad()
def own_texts(model: Model, *, n: int = 8, length: int = 16) -> Texts:
    """Texts that the model itself continues: the likeliest token again and again after three random
    ones.
    """
    texts = random_texts(n=n, length=length, ragged=False)
    ids = torch.as_tensor(texts.tokens)
    for place in range(4, length):
        ids[:, place] = model.subject.logits(ids[:, :place])[:, -1].argmax(dim=-1)
    return Texts(
        ids.numpy(), texts.lengths, texts.counted & (np.arange(length) >= 3), texts.repeated, 0
    )
