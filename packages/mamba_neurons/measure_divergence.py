"""How far predictions moved: KL from the clean ones and the change of the loss, from logits or from
hidden states.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.mamba.selective_scan import backend_for

WORDS = 1024  # of the vocabulary at a time: their logits stay in the cache
LARGEST = 80.0  # exp of more leaves float32


def divergence(
    logits: Float[Tensor, "copy scored vocab"],
    clean: Float[Tensor, "scored vocab"],
    p: Float[Tensor, "scored vocab"],
    target: Int[Tensor, " scored"],
) -> tuple[Float[Tensor, "copy scored"], Float[Tensor, "copy scored"]]:
    """KL(p || softmax(logits)) and the change of the target's loss, nats; `logits` is overwritten.

    With d the difference of logits and x = d - E_p d, KL = log E_p exp(x) = log1p(E_p[exp(x) - 1 -
    x]): a mean of terms that are not negative, exact where a difference of entropies would be
    rounding noise.
    """
    d = logits.sub_(clean)
    at_target = d.gather(-1, target.expand(len(d), -1)[..., None])[..., 0]
    mean = torch.einsum("csv,sv->cs", d, p)
    x = d.sub_(mean[..., None])
    excess = torch.expm1(x).sub_(x)
    kl = torch.einsum("csv,sv->cs", excess, p).clamp_min_(0).log1p_()

    # exp overflows where logits moved by more than 88: there KL is large.
    beyond = ~torch.isfinite(kl)
    if bool(beyond.any()):
        kl[beyond] = torch.logsumexp(x + clean.log_softmax(dim=-1), dim=-1)[beyond]
    return kl, kl + mean - at_target


@dataclass(frozen=True, eq=False)
class Streamed:
    """The same from changes of hidden states, a few words of the vocabulary at a time.

    Logits are linear in the hidden state, so E_p d and the target's d need one product with a
    vector each, and d itself is the unembedding of the change: no logits are kept, and small
    changes do not drown in large logits.
    """

    weight: Float[Tensor, "vocab d_model"]
    logits: Float[Tensor, "scored vocab"]  # the clean ones
    p: Float[Tensor, "scored vocab"]
    target: Int[Tensor, " scored"]
    expected: Float[Tensor, "scored d_model"]  # E_p of the unembedding's rows

    @classmethod
    def of(
        cls,
        head: torch.nn.Module,
        logits: Float[Tensor, "scored vocab"],
        p: Tensor,
        target: Int[Tensor, " scored"],
    ) -> "Streamed | None":
        """None where its kernel cannot run: another device or type, or no Numba."""
        weight = head.get_parameter("weight").detach()
        if weight.dtype != torch.float32 or backend_for(weight) != "numba":
            return None
        return cls(weight, logits, p, target, p @ weight)

    def __call__(
        self, change: Float[Tensor, "copy scored d_model"]
    ) -> tuple[Float[Tensor, "copy scored"], Float[Tensor, "copy scored"]]:
        """KL and change of the target's loss, nats, of changes of the normed hidden states."""
        from interp_core.mamba.suffix_kernels import add_excess

        mean = torch.einsum("csd,sd->cs", change, self.expected)
        total, largest = torch.zeros_like(mean, dtype=torch.float64), torch.zeros_like(mean)
        rows = change.flatten(0, 1)
        room = rows.new_empty(len(rows) * WORDS)
        for first in range(0, len(self.weight), WORDS):
            words = self.weight[first : first + WORDS]
            d = room[: len(rows) * len(words)].view(len(rows), len(words))
            torch.mm(rows, words.T, out=d)
            arrays = (d.unflatten(0, mean.shape), mean, self.p, total, largest)
            add_excess(first, *(array.numpy() for array in arrays))

        kl = total.clamp_min_(0).log1p_().float()
        for copy, place in torch.nonzero(largest > LARGEST).tolist():
            one = slice(place, place + 1)
            logits = self.logits[one] + change[copy, one] @ self.weight.T
            exact = divergence(logits[None], self.logits[one], self.p[one], self.target[one])
            kl[copy, place] = exact[0][0, 0]

        at_target = torch.einsum("csd,sd->cs", change, self.weight[self.target])
        return kl, kl + mean - at_target
