"""What every head does on stimuli, in one pass over the model, and how well the model copies.

No pattern is ever built: per layer only the wanted entries are computed (attention.py), and at most
one layer's queries and keys are alive. Scores are means over a prompt's copy operations; intervals
are the caller's (stats.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.errors import InputError
from interp_core.given import places, shown, whole
from interp_core.measures.circuits import vocabulary_covariance
from interp_core.models.sites import Site
from interp_core.models.subject import AttentionRows, Subject, Transformer, as_transformer
from interp_core.progress import left_out, progress
from interp_core.stimuli.prompts import Pairs, Prompts


@dataclass(frozen=True)
class Scores:
    """Per prompt: heads' scores by name, and how well the model predicted the targets."""

    heads: Mapping[str, Float[np.ndarray, "prompt layer head"]]
    accuracy: Float[np.ndarray, " prompt"]  # share of targets ranked first, in [0, 1]
    loss: Float[np.ndarray, " prompt"]  # mean negative log-likelihood of the targets, nats


def attention_keys(pairs: Pairs) -> dict[str, Int[np.ndarray, " pair"]]:
    """The keys whose attention the standard scores report, from each pair's query.

    prefix_matching: the token after the earlier occurrence (Olsson et al. 2022); duplicate_token:
    the earlier occurrence itself; previous_token: the token before the query; bos: position 0.
    """
    return {
        "prefix_matching": pairs.induction_key,
        "duplicate_token": pairs.duplicate_key,
        "previous_token": pairs.previous_key,
        "bos": np.zeros_like(pairs.query),
    }


def attention_scores(
    subject: Subject, prompts: Prompts, *, batch_size: int = 32, control: bool = False
) -> dict[str, Float[np.ndarray, "prompt layer head"]]:
    """Mean attention, in [0, 1], from the queries of each prompt to the keys of `attention_keys`;
    nothing else is run.

    control=True asks the same of the control prompts, where the keys follow nothing that occurred
    before.
    """
    tokens = prompts.control if control else prompts.tokens
    return dict(
        score_heads(
            subject, tokens, prompts.pairs, attention_keys(prompts.pairs), batch_size=batch_size
        ).heads
    )


@torch.no_grad()
def score_heads(
    subject: Subject,
    tokens: Int[np.ndarray, "prompt position"],
    pairs: Pairs,
    keys: Mapping[str, Int[np.ndarray, " pair"]],
    *,
    batch_size: int = 32,
    behaviour: bool = False,
    contributions: bool = False,
    label: str | None = None,
) -> Scores:
    """Attention from each pair's query to named keys, averaged by prompt, in one pass over the
    model.

    behaviour adds accuracy and loss at the queries (the unembedding runs only there; otherwise both
    are not-a-number). contributions adds two scores of what heads write:
      direct_logit_attribution: logit of the target minus the mean logit that the head's output
      adds, in nats;
      copying_empirical: logit of the target that the head's value at the induction key writes if
      attended to, in standard deviations over the vocabulary (0 for a head that does not copy).
    Both are of logits before any cap. One that cannot be said of this model is left out, with a
    line that says why.
    `label` names the progress bar.
    """
    subject = as_transformer(subject)
    batch_size = whole(batch_size, "batch_size", least=1)
    keys = _checked(subject, tokens, pairs, keys, targets=behaviour or contributions)
    directions = _TargetDirections.of(subject) if contributions else None
    heads: list[dict[str, Tensor]] = []
    accuracy, loss = [np.empty(0)], [np.empty(0)]
    batches = list(copy_batches(subject, tokens, pairs, batch_size))

    for batch in progress(batches, label or f"scores of {subject.name}", unit="batch"):
        columns = batch.columns(np.stack(list(keys.values())))
        watched = _Pass(
            subject,
            batch,
            list(keys),
            columns,
            directions,
            stop=not behaviour and directions is None,
        )
        hidden = None

        with watched, suppress(_Enough):
            hidden = subject.trunk(batch.ids)

        heads.append(watched.by_prompt())

        if hidden is not None and behaviour:
            nats, hits = batch.behaviour(subject.unembed(batch.at_queries(hidden)))
            loss.append(nats)
            accuracy.append(hits)

    nothing = np.full(len(tokens), np.nan)

    return Scores(
        heads={
            name: torch.cat([part[name] for part in heads]).float().cpu().numpy()
            for name in heads[0]
        },
        accuracy=np.concatenate(accuracy) if behaviour else nothing,
        loss=np.concatenate(loss) if behaviour else nothing,
    )


def _checked(
    subject: Subject, tokens: Any, pairs: Any, keys: Any, *, targets: bool
) -> dict[str, Int[np.ndarray, " pair"]]:
    """The keys, once all places lie in the prompts. InputError for those that do not.

    Attention to a key behind its query is 0, and the formula for single entries would say
    something else.
    """
    if not isinstance(pairs, Pairs):
        raise InputError(f"pairs are the Pairs of prompts, prompts.pairs; got {shown(pairs)}")
    if isinstance(tokens, Prompts) or np.ndim(tokens) != 2:
        raise InputError(f"tokens are rows of ids, such as prompts.tokens; got {shown(tokens)}")
    if not isinstance(keys, Mapping) or not keys:
        right = '{"prefix_matching": prompts.pairs.induction_key}'
        raise InputError(f"keys map names to positions, such as {right}; got {shown(keys)}")

    length = len(tokens[0]) if len(tokens) else 0
    of_pairs = {"below": length, "length": len(pairs)}
    query = places(pairs.query, "pairs.query", **of_pairs)
    places(pairs.earlier, "pairs.earlier", **of_pairs)
    places(pairs.batch, "pairs.batch", below=len(tokens), length=len(pairs))
    if targets:
        places(pairs.target, "pairs.target", below=subject.vocab_size, length=len(pairs))

    found = {}

    for name, key in keys.items():
        found[name] = places(key, f"keys[{name!r}]", **of_pairs)
        late = np.flatnonzero(found[name] > query)
        if len(late):
            where = int(late[0])
            raise InputError(
                f"keys[{name!r}] holds {found[name][where]} for a query at {query[where]}: nothing "
                "attends to what comes after it"
            )

    return found


@torch.no_grad()
def copy_behaviour(
    subject: Subject, prompts: Prompts, *, batch_size: int = 32
) -> tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]]:
    """Accuracy and loss (nats) at the copy operations of each prompt; every intervention in force
    applies.
    """
    accuracy, loss = [], []

    for batch in copy_batches(subject, prompts.tokens, prompts.pairs, batch_size):
        nats, hits = batch.behaviour(subject.unembed(batch.at_queries(subject.trunk(batch.ids))))
        loss.append(nats)
        accuracy.append(hits)

    return np.concatenate(accuracy), np.concatenate(loss)


@dataclass(frozen=True)
class CopyBatch:
    """Some prompts on the model's device, and their copy operations; `where` counts prompts from
    the batch's first.
    """

    first: int  # the first prompt's number among all
    rows: slice  # these pairs among all
    ids: Int[Tensor, "prompt position"]
    where: Int[Tensor, " pair"]
    query: Int[Tensor, " pair"]
    key: Int[Tensor, " pair"]  # the induction key
    target: Int[Tensor, " pair"]

    def __len__(self) -> int:
        return len(self.ids)

    def of_prompts(self, values: Int[np.ndarray, " all_prompts"]) -> Int[Tensor, " prompt"]:
        """Values of these prompts, on the device."""
        return torch.as_tensor(values[self.first : self.first + len(self)], device=self.ids.device)

    def columns(self, values: Int[np.ndarray, "kind all_pairs"]) -> Int[Tensor, "kind pair"]:
        """Columns of these pairs, on the device."""
        return torch.as_tensor(values[:, self.rows], device=self.ids.device)

    def at_queries(
        self, hidden: Float[Tensor, "prompt position d_model"]
    ) -> Float[Tensor, "pair d_model"]:
        """Hidden states at the queries."""
        return hidden[self.where, self.query]

    def prompt_mean(self, values: Float[Tensor, "pair *column"]) -> Float[Tensor, "prompt *column"]:
        """Mean over each prompt's pairs, in float64; every prompt has at least one."""
        sums = torch.zeros(len(self), *values.shape[1:], dtype=torch.float64, device=values.device)
        counts = torch.bincount(self.where, minlength=len(self))
        return sums.index_add(0, self.where, values.double()) / counts.reshape(
            -1, *[1] * (values.ndim - 1)
        )

    def nats(self, logits: Float[Tensor, "pair vocab"]) -> Float[Tensor, " prompt"]:
        """Mean negative log-likelihood of the targets, in float32 or finer."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.prompt_mean(
            torch.nn.functional.cross_entropy(logits, self.target, reduction="none")
        )

    def behaviour(
        self, logits: Float[Tensor, "pair vocab"]
    ) -> tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]]:
        """Loss and accuracy by prompt."""
        hits = self.prompt_mean((logits.argmax(dim=-1) == self.target).float())
        return self.nats(logits).cpu().numpy(), hits.cpu().numpy()


def copy_batches(
    subject: Subject, tokens: Int[np.ndarray, "prompt position"], pairs: Pairs, batch_size: int
) -> Iterator[CopyBatch]:
    """Prompts in batches, in order. InputError when the pairs are not ordered by prompt."""
    if np.any(np.diff(pairs.batch) < 0):
        raise InputError("the pairs of prompts must be ordered by prompt")

    for first in range(0, len(tokens), batch_size):
        ids = subject.ids(tokens[first : first + batch_size])
        rows = slice(*np.searchsorted(pairs.batch, [first, first + len(ids)]))
        parts = (
            pairs.batch[rows] - first,
            pairs.query[rows],
            pairs.induction_key[rows],
            pairs.target[rows],
        )
        yield CopyBatch(
            first, rows, ids, *(torch.as_tensor(part, device=ids.device) for part in parts)
        )


class _Enough(Exception):
    """The last layer's attention has been seen and nobody asks for more of the pass."""


class _Pass(ExitStack):
    """What is collected while the model runs once on a batch."""

    def __init__(
        self,
        subject: Transformer,
        batch: CopyBatch,
        names: Sequence[str],
        keys: Int[Tensor, "kind pair"],
        directions: "_TargetDirections | None",
        *,
        stop: bool,
    ) -> None:
        super().__init__()
        self.stop = stop
        self.subject, self.batch, self.names, self.keys, self.directions = (
            subject,
            batch,
            names,
            keys,
            directions,
        )
        self.found: dict[tuple[str, int], Float[Tensor, "pair head"]] = {}
        self.scales: list[Tensor] = []
        self.write_scales: dict[int, Tensor] = {}

    def __enter__(self) -> "_Pass":
        super().__enter__()
        self.enter_context(self.subject.observing(self._observe))

        if self.directions is not None:
            self.scales = self.enter_context(self.subject.final_scale())
            self.write_scales = self.enter_context(self.subject.write_scales())
            for layer in range(self.subject.n_layers):
                self.enter_context(
                    self.subject.attach(Site(layer, "attn.z"), partial(self._written, layer))
                )

        return self

    def by_prompt(self) -> dict[str, Float[Tensor, "prompt layer head"]]:
        """Prompt means of all that was collected."""
        for (name, layer), values in self.found.items():
            if name != "direct_logit_attribution":
                continue
            values /= self.scales[-1][self.batch.where, self.batch.query][:, None]
            if layer in self.write_scales:
                values /= self.write_scales[layer][self.batch.where, self.batch.query][:, None]

        layers = range(self.subject.n_layers)
        names = dict.fromkeys(name for name, _ in self.found)

        return {
            name: torch.stack(
                [self.batch.prompt_mean(self.found[name, layer]) for layer in layers], dim=1
            )
            for name in names
        }

    def _observe(self, layer: int, rows: AttentionRows) -> None:
        entries = rows.entries(self.batch.where, self.batch.query, self.keys)
        self.found |= {
            (name, layer): entry for name, entry in zip(self.names, entries, strict=True)
        }

        if self.directions is not None and self.directions.copies:
            values = rows.values(self.batch.where, self.batch.key)
            self.found["copying_empirical", layer] = self.directions.copying(
                layer, values, self.batch.target
            )

        if self.stop and layer == self.subject.n_layers - 1:
            raise _Enough

    def _written(self, layer: int, z: Float[Tensor, "prompt position head d_head"]) -> None:
        assert self.directions is not None
        read = z[self.batch.where, self.batch.query]
        self.found["direct_logit_attribution", layer] = self.directions.attribution(
            layer, read, self.batch.target
        )


@dataclass(frozen=True)
class _TargetDirections:
    """Directions of the residual stream that raise a token's logit above the mean logit."""

    subject: Transformer
    copies: bool  # whether what a value would write is known
    unembedding: Float[Tensor, "d_model vocab"]
    covariance: Float[Tensor, "d_model d_model"]

    @classmethod
    def of(cls, subject: Transformer) -> "_TargetDirections | None":
        reason = subject.why_no_attribution()

        if reason is not None:
            left_out(f"{subject.name}: attribution and copying are left out: {reason}")
            return None

        no_copying = subject.why_no_copying()

        if no_copying is not None:
            left_out(f"{subject.name}: copying by values is left out: {no_copying}")

        unembedding = subject.unembedding()
        unembedding = unembedding - unembedding.mean(dim=1, keepdim=True)

        return cls(subject, no_copying is None, unembedding, vocabulary_covariance(unembedding))

    def attribution(
        self, layer: int, vectors: Float[Tensor, "pair head d_head"], target: Int[Tensor, " pair"]
    ) -> Float[Tensor, "pair head"]:
        """Logit of each target that vectors @ W_O adds, before division by the norms' scales."""
        toward = self.unembedding[:, target]
        carried = self.subject.carried(layer)
        if carried != 1.0:
            toward = carried * toward
        read = torch.einsum("hed,dp->phe", self.subject.out_weights(layer), toward)
        return (vectors.float() * read).sum(-1)

    def copying(
        self, layer: int, values: Float[Tensor, "pair head d_head"], target: Int[Tensor, " pair"]
    ) -> Float[Tensor, "pair head"]:
        """The attribution of `values`, in standard deviations of the logits they write over the
        vocabulary.
        """
        out = self.subject.out_weights(layer)
        spread = torch.einsum("hed,dc,hfc->hef", out, self.covariance, out)
        variance = torch.einsum("phe,hef,phf->ph", values.float(), spread, values.float())
        # The factor that blocks behind put on the stream is in the numerator alone.
        added = self.attribution(layer, values, target) / self.subject.carried(layer)

        return added / variance.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
