"""Transformers whose circuit we built by hand: ground truth for every score and every intervention.

Real GPT-2 language models with real LayerNorms, two layers, four heads, MLPs that write nothing.
The residual stream has four subspaces of SIZE dimensions: the token, its position, the previous
token, and the output that the unembedding reads. Each holds a one-hot vector, so that mean and
variance of the stream are the same at every position; the LayerNorms' weights and biases undo
exactly these and each LayerNorm is the identity as long as the circuit is intact. Heads that are
not named attend uniformly and write exactly zero.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from interp_core.stimuli.prompts import Vocabulary

SIZE = 64  # ids, positions, and dimensions of a head
N_LAYERS, N_HEADS = 2, 4
D_MODEL = 4 * SIZE
TOKEN, POSITION, PREVIOUS, OUTPUT = (slice(i * SIZE, (i + 1) * SIZE) for i in range(4))

PREVIOUS_TOKEN_HEAD = (0, 1)
INDUCTION_HEAD = (1, 2)
DUPLICATE_TOKEN_HEAD = (1, 2)

VOCABULARY = Vocabulary(ids=np.arange(1, SIZE), bos=0, pad=0)

_SHARP = 60.0  # attention logit of a match over everything else: softmax is one-hot to 1e-26
_SINK = 30.0  # attention logit of BOS where nothing matches
_CERTAIN = 40.0  # logit of the predicted token over all others


def induction_model() -> GPT2LMHeadModel:
    """A perfect previous-token head (PREVIOUS_TOKEN_HEAD) and a perfect induction head that reads
    it through its keys (INDUCTION_HEAD): the token after the earlier occurrence is predicted with
    certainty. Without an earlier occurrence the induction head attends to BOS.
    """
    model = _empty_model(ones_before_final_norm=4)
    _plant_previous_token_head(model)
    query, key = torch.zeros(D_MODEL, SIZE), torch.zeros(D_MODEL, SIZE)
    query[TOKEN] = _SHARP * torch.eye(SIZE)
    key[PREVIOUS] = torch.eye(SIZE)
    # Dimension 0 belongs to BOS, which is never a query that matters: it carries the sink instead.
    query[TOKEN][0] = 0.0
    key[PREVIOUS][0] = 0.0
    key[POSITION.start, 0] = 1.0
    sink = torch.zeros(SIZE)
    sink[0] = _SINK
    _plant(model, INDUCTION_HEAD, query=query, key=key, query_bias=sink, reads=TOKEN, writes=OUTPUT)
    return model


def duplicate_token_model() -> GPT2LMHeadModel:
    """The same with a duplicate-token head in the induction head's place (DUPLICATE_TOKEN_HEAD): it
    attends to the first occurrence of the query's own token, to itself where there is none before,
    and predicts that token again.
    """
    model = _empty_model(ones_before_final_norm=4)
    _plant_previous_token_head(model)
    query, key = torch.zeros(D_MODEL, SIZE), torch.zeros(D_MODEL, SIZE)
    query[TOKEN] = 20.0 * SIZE * torch.eye(SIZE)
    key[TOKEN] = torch.eye(SIZE)
    # Dimension 0 (BOS) carries a ramp against late keys, or the query would attend to itself as
    # well.
    query[TOKEN][0] = 0.0
    key[TOKEN][0] = 0.0
    key[POSITION, 0] = -torch.arange(SIZE, dtype=torch.float32)
    ramp = torch.zeros(SIZE)
    ramp[0] = 10.0
    _plant(
        model,
        DUPLICATE_TOKEN_HEAD,
        query=query,
        key=key,
        query_bias=ramp,
        reads=TOKEN,
        writes=OUTPUT,
    )
    return model


def _empty_model(*, ones_before_final_norm: int) -> GPT2LMHeadModel:
    """Embeds tokens and positions, reads the output subspace; attention and MLPs write zero."""
    config = GPT2Config(
        vocab_size=SIZE,
        n_positions=SIZE,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_inner=8,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=VOCABULARY.bos,
        eos_token_id=VOCABULARY.bos,
    )
    model = GPT2LMHeadModel(config).eval()
    model.requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        parameter.zero_()
    trunk: Any = model.transformer
    trunk.wte.weight[:, TOKEN] = torch.eye(SIZE)
    trunk.wpe.weight[:, POSITION] = torch.eye(SIZE)
    model.lm_head.weight[:, OUTPUT] = _CERTAIN * torch.eye(SIZE)
    for layer, block in enumerate(trunk.h):
        _identity(block.ln_1, ones=2 + layer)
        _identity(block.ln_2, ones=3 + layer)
    _identity(trunk.ln_f, ones=ones_before_final_norm)
    return model


def _identity(norm: nn.LayerNorm, *, ones: int) -> None:
    """Make a LayerNorm the identity on vectors that hold `ones` ones and are zero elsewhere."""
    mean = ones / D_MODEL
    norm.weight.fill_(float(np.sqrt(mean - mean**2 + norm.eps)))
    norm.bias.fill_(mean)


def _plant_previous_token_head(model: GPT2LMHeadModel) -> None:
    query, key = torch.zeros(D_MODEL, SIZE), torch.zeros(D_MODEL, SIZE)
    query[POSITION] = _SHARP * torch.eye(SIZE).roll(-1, dims=1)  # position t asks for t - 1
    query[POSITION][0] = 0.0
    key[POSITION] = torch.eye(SIZE)
    _plant(
        model,
        PREVIOUS_TOKEN_HEAD,
        query=query,
        key=key,
        query_bias=None,
        reads=TOKEN,
        writes=PREVIOUS,
    )


def _plant(
    model: GPT2LMHeadModel,
    place: tuple[int, int],
    *,
    query: Float[Tensor, "d_model d_head"],
    key: Float[Tensor, "d_model d_head"],
    query_bias: Float[Tensor, " d_head"] | None,
    reads: slice,
    writes: slice,
) -> None:
    """Give one head its query and key maps (attention logit = their product) and let it copy
    `reads` into `writes`.

    GPT-2's Conv1D weights are [in, out]; c_attn holds q, k and v side by side, each with the heads
    side by side.
    """
    layer, head = place
    blocks: Any = model.transformer.h
    attention = blocks[layer].attn
    q, k, v = (slice(i * D_MODEL + head * SIZE, i * D_MODEL + (head + 1) * SIZE) for i in range(3))
    undo_scaling = SIZE**0.5  # the module divides by sqrt(d_head)
    attention.c_attn.weight[:, q] = undo_scaling * query
    attention.c_attn.weight[:, k] = key
    attention.c_attn.weight[reads, v] = torch.eye(SIZE)
    if query_bias is not None:
        attention.c_attn.bias[q] = undo_scaling * query_bias
    attention.c_proj.weight[head * SIZE : (head + 1) * SIZE, writes] = torch.eye(SIZE)
