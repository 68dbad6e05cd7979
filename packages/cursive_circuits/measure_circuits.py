"""QK and OV circuits with LayerNorm folded in, biases and 1/sqrt(d_head), and what they do on
strokes and characters.

Symbols are those of Elhage et al. 2021. Folded matrices act on the centred and scaled residual
stream with a one appended, so that biases are rows of the matrices:
    score(t, s) = [x_t, 1] W_Q R(t - s) W_K^T [x_s, 1]^T / sqrt(d_head)
In cross-attention the keys' side is the text as the model reads it, which no norm precedes.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from cursive_circuits.model import CursiveTransformer, Head, Kind
from cursive_circuits.model_blocks import turned
from cursive_circuits.model_watching import observing
from cursive_circuits.run_directory import Trained

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
Factors = Float[Tensor, "head row d_head"]


def folded(model: CursiveTransformer, layer: int, kind: Kind) -> tuple[Factors, Factors, Factors]:
    """W_Q, W_K, W_V of a layer's heads, each [head, d_model + 1, d_head], the last row the bias."""
    block, attention = model.layers[layer], model.attention(layer, kind)
    norm = block.self_norm if kind == "self" else block.cross_norm
    key, value = attention.kv.weight.chunk(2), attention.kv.bias.chunk(2)
    read = None if kind == "cross" else norm
    query = _augmented(attention.q.weight, attention.q.bias, norm, model.n_heads)
    keys, values = (_augmented(key[i], value[i], read, model.n_heads) for i in (0, 1))
    return query, keys, values


def _augmented(
    weight: Tensor, bias: Tensor, norm: torch.nn.LayerNorm | None, heads: int
) -> Factors:
    """The map as a matrix from the left, norm folded in; heads lie along the ROWS of nn.Linear's
    weight.
    """
    matrix = weight.T
    if norm is not None:
        bias = bias + norm.bias @ matrix
        matrix = norm.weight[:, None] * matrix
    return rearrange(
        torch.cat([matrix, bias[None]]), "row (head e) -> head row e", head=heads
    ).detach()


def normalised(x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead row"]:
    """A residual stream as folded matrices read it: centred, scaled as LayerNorm does, a one
    appended.
    """
    plain = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)
    return torch.cat([plain, torch.ones_like(plain[..., :1])], dim=-1)


def with_one(memory: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead row"]:
    """The text's side of cross-attention, a one appended."""
    return torch.cat([memory, torch.ones_like(memory[..., :1])], dim=-1)


def get_QK_matrices(
    model: CursiveTransformer, layer_idx: int, head_idx: int, kind: Kind = "self"
) -> tuple[Float[Tensor, "row d_head"], Float[Tensor, "row d_head"]]:
    """Folded W_Q and W_K of one head, [d_model + 1, d_head]."""
    query, key, _ = folded(model, layer_idx, kind)
    return query[head_idx], key[head_idx]


def compute_QK_circuit(
    W_Q: Float[Tensor, "row d_head"],
    W_K: Float[Tensor, "row d_head"],
    angles: Float[Tensor, " pair"] | None = None,
) -> Float[Tensor, "row row"]:
    """W_Q R W_K^T / sqrt(d_head): bilinear form of pre-softmax scores.

    `angles` turn the query, which stands that much later than the key (`distance_angles`); None
    without rotary positions.
    """
    return (
        (W_Q if angles is None else turned(W_Q, angles.cos(), angles.sin()))
        @ W_K.T
        / W_Q.shape[-1] ** 0.5
    )


def distance_angles(model: CursiveTransformer, distance: int) -> Float[Tensor, " pair"] | None:
    """Rotary angles of a query `distance` tokens after its key."""
    if model.shape.positions == "learned":
        return None
    return (distance * model.frequencies()).to(model.embed.weight.dtype).to(model.device)


def get_VO_matrices(
    model: CursiveTransformer, layer_idx: int, head_idx: int, kind: Kind = "self"
) -> tuple[Float[Tensor, "row d_head"], Float[Tensor, "d_head d_model"]]:
    """Folded W_V [d_model + 1, d_head], and W_O [d_head, d_model]: a head's COLUMNS of the output
    weight.
    """
    _, _, value = folded(model, layer_idx, kind)
    return value[head_idx], model.out_weights(layer_idx, kind)[head_idx].detach()


def compute_OV_circuit(
    W_V: Float[Tensor, "row d_head"],
    W_O: Float[Tensor, "d_head d_model"],
) -> Float[Tensor, "row d_model"]:
    """W_V W_O: what a head writes when it attends to a place, by what stands there."""
    return W_V @ W_O


def get_attention_patterns(
    model: CursiveTransformer,
    batches: Iterable[tuple[Int[Tensor, "row position"], Int[Tensor, "row character"]]],
    layer_idx: int,
    head_idx: int,
    num_batches: int = 1,
    kind: Kind = "self",
) -> list[Float[Tensor, "row query key"]]:
    """Attention of one head in the first batches of (ids, text), one array a batch: rows of
    different batches have different lengths, and averaging samples that are not aligned says
    nothing.
    """
    found = []
    for number, (ids, text) in enumerate(batches):
        if number == num_batches:
            break
        with torch.no_grad(), observing(model) as seen:
            model(ids.to(model.device), text.to(model.device))
        found.append(seen[layer_idx, kind].call.pattern()[:, head_idx].cpu())
    return found


@torch.no_grad()
def token_circuits(trained: Trained, distances: tuple[int, ...]) -> tuple[Arrays, Report]:
    """Every head on token bases.

    Arrays: `qk_direction` [layer, head, query direction, key direction] and `qk_radius` [..., query
    radius, key radius] (pen down), pre-softmax scores of embeddings alone, mean over rotary
    distances; `ov_direction` [layer, head, attended direction, written direction], logits;
    `cross_ov` [layer, head, character, direction], logits; `cross_qk` [layer, head, direction,
    character], scores; `spectrum` [layer, head, frequency]: power of the part of qk_direction that
    depends on the angle between query and key alone, by circular frequency, as a share of the whole
    (bar the mean); `kernel` [layer, head, difference]: mean score by difference of radius bins.
    Report: `heads`, for each self-attention head its strongest angular frequency with its share,
    the share of all, and copying: how far attending to a direction raises that direction, and the
    opposite one, in standard deviations of what it writes; `tuned`, the head with the largest
    angular share; for a model that writes also `reads`, the cross-attention head whose OV differs
    most between characters, and the alphabet.
    """
    model, tokens = trained.model, trained.tokens
    embedded = normalised(model.embed.weight)
    unembed = (model.unembed.weight * model.norm.weight).T
    unembed = unembed - unembed.mean(dim=1, keepdim=True)
    letters = with_one(model.character.weight[1:] + model.character_place.weight[:1])
    parts: dict[str, list[Tensor]] = {}
    directions, radii = (
        slice(0, tokens.directions),
        slice(tokens.directions + tokens.radii, tokens.pad),
    )
    for layer in range(model.n_layers):
        turns = [distance_angles(model, distance) for distance in distances]
        heads = range(model.n_heads)
        qk = torch.stack([_mean_form(model, layer, head, turns) for head in heads])
        ov = torch.stack(
            [compute_OV_circuit(*get_VO_matrices(model, layer, head)) for head in heads]
        )
        cross_ov = torch.stack(
            [compute_OV_circuit(*get_VO_matrices(model, layer, head, "cross")) for head in heads]
        )
        cross = torch.stack(
            [compute_QK_circuit(*get_QK_matrices(model, layer, head, "cross")) for head in heads]
        )
        for name, values in (
            ("qk_direction", embedded[directions] @ qk @ embedded[directions].T),
            ("qk_radius", embedded[radii] @ qk @ embedded[radii].T),
            ("ov_direction", embedded[directions] @ ov @ unembed[:, directions]),
            ("cross_ov", letters @ cross_ov @ unembed[:, directions]),
            ("cross_qk", embedded[directions] @ cross @ letters.T),
        ):
            parts.setdefault(name, []).append(values)
    arrays = {name: torch.stack(values).double().cpu().numpy() for name, values in parts.items()}
    arrays["spectrum"] = angular_spectrum(arrays["qk_direction"])
    arrays["kernel"] = radius_kernel(arrays["qk_radius"])
    places = list(np.ndindex(model.n_layers, model.n_heads))
    report: Report = {
        "heads": {str(Head(a, "self", b)): _on_strokes(arrays, a, b) for a, b in places}
    }
    report["tuned"] = max(report["heads"], key=lambda name: report["heads"][name]["angular_share"])
    if trained.writes:
        spread = arrays["cross_ov"].std(axis=2).mean(axis=-1)
        layer, head = np.unravel_index(spread.argmax(), spread.shape)
        report |= {"reads": str(Head(int(layer), "cross", int(head))), "alphabet": trained.alphabet}
    return arrays, report


def _mean_form(
    model: CursiveTransformer, layer: int, head: int, turns: list[Tensor | None]
) -> Tensor:
    matrices = get_QK_matrices(model, layer, head)
    return torch.stack([compute_QK_circuit(*matrices, angles) for angles in turns]).mean(dim=0)


def angular_spectrum(
    scores: Float[np.ndarray, "*lead direction direction"],
) -> Float[np.ndarray, "*lead frequency"]:
    """Power by circular frequency k = 1, 2, ... of the part of a direction-by-direction map that
    depends on the angle between the two alone, as a share of the map's variance. A map cos(k (a -
    b)) has 1 at k.
    """
    n = scores.shape[-1]
    centred = scores - scores.mean(axis=(-2, -1), keepdims=True)
    power = np.abs(np.fft.fft2(centred)) ** 2
    k = np.arange(1, n // 2 + 1)
    diagonal = power[..., k, (-k) % n] + np.where(2 * k == n, 0.0, power[..., (-k) % n, k])
    return diagonal / np.maximum(power.sum(axis=(-2, -1)), np.finfo(float).tiny)[..., None]


def radius_kernel(
    scores: Float[np.ndarray, "*lead radius radius"],
) -> Float[np.ndarray, "*lead difference"]:
    """Mean score by key bin minus query bin, from -(n - 1) to n - 1, the overall mean taken out."""
    n = scores.shape[-1]
    centred = scores - scores.mean(axis=(-2, -1), keepdims=True)
    return np.stack(
        [np.diagonal(centred, d, -2, -1).mean(axis=-1) for d in range(1 - n, n)], axis=-1
    )


def _on_strokes(arrays: Arrays, layer: int, head: int) -> Report:
    spectrum, written = arrays["spectrum"][layer, head], arrays["ov_direction"][layer, head]
    n, spread = len(written), written.std(axis=1)
    centred = (written - written.mean(axis=1, keepdims=True)) / spread[:, None]
    return {
        "frequency": int(spectrum.argmax()) + 1,
        "frequency_share": float(spectrum.max()),
        "angular_share": float(spectrum.sum()),
        "copying": float(np.diagonal(centred).mean()),
        "opposite": float(np.mean([centred[a, (a + n // 2) % n] for a in range(n)])),
    }
