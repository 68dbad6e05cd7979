"""Loading the models of the study, and what a Mamba and a transformer are asked alike."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.errors import InputError
from interp_core.loading import load_model
from interp_core.mamba.families import recurrence_of, refusal
from interp_core.mamba.hidden_attention import Call, effective_attention, observing_mixers
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.models.native import NativeSubject
from interp_core.models.sites import Site
from interp_core.models.spec import ModelSpec, short_name, spec_of
from interp_core.models.subject import AttentionRows, Subject, Transformer, as_transformer
from interp_core.stimuli.opening import check_begun
from interp_core.training.threads import use_threads
from mamba_induction.params import MambaInduction


def load(name: str, known: Mapping[str, ModelSpec], params: MambaInduction) -> Subject:
    """The model of this name, checked, on the device and in the type that params say.

    InputError for one that is neither a Mamba nor a transformer that the core runs natively, and
    for a hybrid: what its other half reads and writes is not known here.
    """
    use_threads(params.threads)
    check_begun(params.bos)
    subject = load_model(
        spec_of(name, known),
        name=short_name(name),
        device=params.device,
        dtype=params.dtype,
        bos=params.bos,
    )
    if not isinstance(subject, NativeSubject):
        as_mamba(subject)
    elif words := recurrence_of(subject.model):
        raise InputError(refusal(subject.name, subject.model, words))
    return subject


def load_mamba(name: str, known: Mapping[str, ModelSpec], params: MambaInduction) -> MambaSubject:
    """The same where only a Mamba will do. InputError, naming what it is, for anything else."""
    return as_mamba(load(name, known, params))


def normed(
    subject: Subject, residual: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """The final norm of a residual stream: what the unembedding would read if the model ended here
    (the logit lens).
    """
    if isinstance(subject, NativeSubject):
        return subject.normed(residual)
    norm: Any = subject.model.get_submodule("backbone.norm_f")
    return norm(residual)


def write_sites(subject: Subject, layer: int) -> dict[str, Site]:
    """Where a layer writes into the residual stream, by what writes."""
    if isinstance(subject, MambaSubject):
        return {"mixer": Site(layer, "mixer_out")}
    return {"attention": Site(layer, "attn_out"), "mlp": Site(layer, "mlp_out")}


@torch.no_grad()
def effective_rows(
    subject: Subject,
    ids: Int[Tensor, "batch position"],
    batch: Int[Tensor, " entry"],
    query: Int[Tensor, " entry"],
    layers: list[int] | None = None,
) -> dict[int, Float[Tensor, "entry key"]]:
    """Effective attention E_l[i, j] by layer, for all keys (0 after the query): the norm of what
    token j's input adds to the residual stream at i through the layer's sequence mixing, in the
    residual's units.

    In a Mamba || W_out (SiLU(z_i) * alpha[:, i, j] * x_j) ||; in a transformer || sum_h A_h[i, j]
    W_O^h v_j^h ||.
    """
    found: dict[int, Tensor] = {}
    if isinstance(subject, MambaSubject):

        def of_mixer(layer: int, call: Call) -> None:
            out: Any = subject.mixer(layer).out_proj.weight
            found[layer] = effective_attention(call, out, batch, query)

        with observing_mixers(subject, of_mixer, layers):
            subject.trunk(ids)
        return found

    heads = as_transformer(subject)

    def of_attention(layer: int, rows: AttentionRows) -> None:
        vectors = attended_vectors(
            heads, layer, rows, batch, query, torch.arange(ids.shape[1], device=ids.device)
        )
        found[layer] = vectors.norm(dim=-1)

    with heads.observing(of_attention, layers):
        subject.trunk(ids)
    return found


def attended_vectors(
    subject: Transformer,
    layer: int,
    rows: AttentionRows,
    batch: Int[Tensor, " entry"],
    query: Int[Tensor, " entry"],
    keys: Int[Tensor, " key"] | Int[Tensor, "key entry"],
) -> Float[Tensor, "entry key d_model"]:
    """sum_h A_h[i, j] W_O^h v_j^h for each of some keys; zero after the query.

    Keys are the same for all queries, or one row of them each. InputError where a head's values are
    not all that it writes from.
    """
    subject.check_plain_writes()
    of_each = keys[:, None].expand(-1, len(query)) if keys.ndim == 1 else keys
    seen = of_each <= query
    of_each = torch.minimum(of_each, query)
    weights = rows.entries(batch, query, of_each) * seen[..., None]
    values = torch.stack([rows.values(batch, key) for key in of_each])
    return torch.einsum(
        "keh,kehd,hdm->ekm", weights.float(), values.float(), subject.out_weights(layer)
    )


def no_tokenizer(subject: Subject) -> InputError:
    """What needs text cannot be asked of a model that comes without a tokenizer."""
    return InputError(
        f"{subject.name} has no tokenizer: text cannot be given to it; save one beside its weights"
    )
