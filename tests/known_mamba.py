"""A Mamba whose circuit we built by hand: its convolution and scan implement induction at a chosen
offset.

A stock MambaForCausalLM of two layers; the second one writes nothing. The residual stream holds the
token one-hot and, apart from it, the output that the unembedding reads. Three groups of channels
hold one-hot tokens: the query group the token at the position itself (C reads it), the match group
the token `offset` positions before (B reads it), and the value group the token `offset` - 1
positions before (what is scanned and written). States keep for ever, dt is 1, so

    alpha[c, i, j] = 1 where token j - offset is token i, else 0,

and position i reads, from the key `offset` after the earlier occurrence of its token, the token
that came after it.
"""

import math
from typing import Any

import numpy as np
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from interp_core.stimuli.prompts import Vocabulary

SIZE = 48  # ids, states, and channels of a group
QUERY, VALUE, MATCH = (slice(i * SIZE, (i + 1) * SIZE) for i in range(3))
TOKEN, OUTPUT = slice(0, SIZE), slice(SIZE, 2 * SIZE)
VOCABULARY = Vocabulary(ids=np.arange(1, SIZE), bos=0, pad=0)
_CERTAIN = 60.0  # logit of the predicted token over all others, before the final norm


@torch.no_grad()
def induction_mamba(offset: int) -> MambaForCausalLM:
    """Predicts the token after the earlier occurrence with certainty; where there is none, all ids
    alike.
    """
    model = MambaForCausalLM(
        MambaConfig(
            vocab_size=SIZE,
            hidden_size=3 * SIZE,
            state_size=SIZE,
            num_hidden_layers=2,
            expand=1,
            conv_kernel=4,
            time_step_rank=1,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    blocks, one_hot = _of_one_hot_vectors(model)
    for block in blocks:
        _keep_for_ever(block.mixer)
    _plant(blocks[0].mixer, offset, one_hot)
    return model.eval()


@torch.no_grad()
def induction_mamba2(offset: int) -> Mamba2ForCausalLM:
    """The same circuit in a Mamba-2: head 1 of layer 0 holds the value group, and its B and C,
    which this convolution moves too, are the match and the query group. Other heads hold nothing.
    """
    model = Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=SIZE,
            hidden_size=3 * SIZE,
            state_size=SIZE,
            num_hidden_layers=2,
            expand=1,
            conv_kernel=4,
            num_heads=3,
            head_dim=SIZE,
            n_groups=1,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    blocks, one_hot = _of_one_hot_vectors(model)
    for block in blocks:
        block.mixer.norm.weight.fill_(1 / math.sqrt(3 * SIZE))  # a one-hot vector stays one
        block.mixer.A_log.fill_(-30.0)
        block.mixer.dt_bias.fill_(math.log(math.e - 1))
    _plant_heads(blocks[0].mixer, offset, one_hot)
    return model.eval()


def _of_one_hot_vectors(model: Any) -> tuple[Any, torch.Tensor]:
    """All weights zero but those of a stream of one-hot vectors: embedding, norms, unembedding.

    Returns the blocks, and the vectors by id.
    """
    for parameter in model.parameters():
        parameter.zero_()

    one_hot = torch.eye(SIZE)
    model.backbone.embeddings.weight[:, TOKEN] = one_hot
    model.backbone.norm_f.weight.fill_(1.0)
    model.lm_head.weight[:, OUTPUT] = _CERTAIN * one_hot

    for block in model.backbone.layers:
        block.norm.weight.fill_(1 / math.sqrt(3 * SIZE))  # undoes the norm of a one-hot vector
    return model.backbone.layers, one_hot


def _plant_heads(mixer: Any, offset: int, one_hot: torch.Tensor) -> None:
    active, width = 8.0, 3 * SIZE
    mixer.in_proj.weight[:width, TOKEN] = active  # the gate is open for every token

    # x of head 1, B and C, as the convolution has them: after all of x.
    groups = ((SIZE, offset - 1), (width, offset), (width + SIZE, 0))
    for first, lag in groups:
        place = slice(first, first + SIZE)
        mixer.in_proj.weight[width:][place, TOKEN] = active * one_hot
        mixer.conv1d.weight[place, 0, 3 - lag] = 1.0
    mixer.out_proj.weight[OUTPUT, SIZE : 2 * SIZE] = one_hot


def _keep_for_ever(mixer: Any) -> None:
    mixer.A_log.fill_(-30.0)
    mixer.dt_proj.bias.fill_(math.log(math.e - 1))  # softplus of it is 1


def _plant(mixer: Any, offset: int, one_hot: torch.Tensor) -> None:
    active = 8.0  # SiLU of it, the size of a one-hot channel
    size = active / (1 + math.exp(-active))
    for group, lag in ((QUERY, 0), (VALUE, offset - 1), (MATCH, offset)):
        mixer.in_proj.weight[group, TOKEN] = active * one_hot
        mixer.conv1d.weight[group, 0, 3 - lag] = 1.0
    mixer.in_proj.weight[3 * SIZE :, TOKEN] = active  # the gate is open for every token
    rank = 1
    mixer.x_proj.weight[rank : rank + SIZE, MATCH] = one_hot / size
    mixer.x_proj.weight[rank + SIZE :, QUERY] = one_hot / size
    mixer.out_proj.weight[OUTPUT, VALUE] = one_hot / size**2
