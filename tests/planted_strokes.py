"""A two-layer model over stroke pairs whose circuit we built by hand.

The residual stream has blocks of one-hot vectors: the token, its position, the token before, the
token before that, and what the unembedding reads. In layer 0 head 0 looks one token back and head 1
a whole pair back. In layer 1 head 0 looks where the token before and the one before that are the
query's own and its predecessor: the token after the earlier occurrence of a (direction, radius)
pair, which it predicts. Layer 1 head 1, cross-attention and MLPs write nothing.
"""

import torch
from torch import Tensor

from cursive_circuits.data_tokens import Tokens
from cursive_circuits.model import CursiveTransformer, Head
from cursive_circuits.model_shape import Shape
from cursive_circuits.run_directory import Trained

PREVIOUS, PAIR_BACK, INDUCTION, IDLE = (
    Head(0, "self", 0),
    Head(0, "self", 1),
    Head(1, "self", 0),
    Head(1, "self", 1),
)
TOKENS = Tokens(directions=12, radii=6, smallest_radius=0.05, largest_radius=0.4, origin=(0.0, 0.6))
PLACES, SHARP = 32, 60.0


def planted(layers: int = 2) -> Trained:
    """The model; layers beyond the second write nothing."""
    v = TOKENS.size
    d_model = 4 * v + PLACES + (4 * v + PLACES) % 4
    shape = Shape(
        layers=layers,
        heads=2,
        d_model=d_model,
        context=PLACES,
        characters=4,
        positions="learned",
        rotary_base=100.0,
        initializer_range=1.0,
        text_range=1.0,
        gelu="tanh",
        mask_padding=True,
    )
    model = CursiveTransformer(shape, vocabulary=v, alphabet=26, seed=0).eval()
    token, before, pair, out = (torch.arange(v) + n * v for n in range(4))
    place = torch.arange(PLACES) + 4 * v
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.embed.weight[torch.arange(v), token] = 1.0
        assert model.place is not None
        model.place.weight[torch.arange(PLACES), place] = 1.0
        model.unembed.weight[torch.arange(v), out] = 8.0
        for head, back, target in ((PREVIOUS, 1, before), (PAIR_BACK, 2, pair)):
            looks = torch.zeros(PLACES, PLACES)
            looks[torch.arange(PLACES), (torch.arange(PLACES) - back).clamp_min(0)] = 1.0
            _plant(
                model,
                head,
                query=(place, looks),
                key=(place, torch.eye(PLACES)),
                value=token,
                write=target,
            )
        own, earlier = torch.cat([token, before]), torch.cat([before, pair])
        _plant(
            model,
            INDUCTION,
            query=(own, torch.eye(2 * v)),
            key=(earlier, torch.eye(2 * v)),
            value=token,
            write=out,
        )
    return Trained("control", model, TOKENS, " abcdefghijklmnopqrstuvwxy")


def _plant(
    model: CursiveTransformer,
    head: Head,
    *,
    query: tuple[Tensor, Tensor],
    key: tuple[Tensor, Tensor],
    value: Tensor,
    write: Tensor,
) -> None:
    """Queries and keys read their blocks through a matrix [block, feature]; values copy one block
    into another.
    """
    attention, d = model.attention(head.layer, head.kind), model.d_head
    rows = slice(head.number * d, (head.number + 1) * d)
    features = query[1].shape[1]
    q, k = torch.zeros(d, model.d_model), torch.zeros(d, model.d_model)
    q[:features, query[0]] = SHARP * query[1].T
    k[:features, key[0]] = key[1].T
    v = torch.zeros(d, model.d_model)
    v[torch.arange(len(value)), value] = 1.0
    attention.q.weight[rows] = q
    attention.kv.weight[: model.d_model][rows] = k
    attention.kv.weight[model.d_model :][rows] = v
    attention.out.weight[write, head.number * d : head.number * d + len(value)] = torch.eye(
        len(value)
    )
