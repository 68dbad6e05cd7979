"""The layer profile of a model's scores, and its peak, centre and width in relative depth.

profile = layer_profile(scores, mode="mean", q=0.9)                     # [layer]
mass = layer_profile(above_noise(scores, 0.05), mode="mean", q=0.9)      # [layer]
profile_shape(profile, mass).centre_of_mass                             # in (0, 1)
described = describe(excess, rng, mode="mean", q=0.9, threshold=0.05, resamples=2000)
described.interval("centre_of_mass").to_json()           # over prompts and heads
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from interp_core.errors import InputError
from interp_core.statistics.interval import Errors, Interval, two_level_errors
from interp_core.statistics.resampling import effective_number

Mode = Literal["mean", "top_quantile", "count"]
SHAPE = (
    "peak_rel",
    "peak_parabolic_rel",
    "centre_of_mass",
    "centre_in_layers",
    "bandwidth",
    "effective_layers",
)
UNIT = "prompts"  # heads are resampled too, which the reports say in words


@dataclass(frozen=True)
class Shape:
    """What a layer profile looks like, one value a draw; NaN where the profile has no mass."""

    peak_layer: Int[np.ndarray, "*draw"]  # index of the highest layer
    peak_rel: Float[np.ndarray, "*draw"]  # its relative depth, (l + 0.5) / L
    # vertex of the parabola through the peak and its neighbours
    peak_parabolic_rel: Float[np.ndarray, "*draw"]
    centre_of_mass: Float[np.ndarray, "*draw"]  # mean relative depth of the mass
    centre_in_layers: Float[np.ndarray, "*draw"]  # the same, layers counted from 0
    bandwidth: Float[np.ndarray, "*draw"]  # relative depth that holds the mass from 16 % to 84 %
    effective_layers: Float[np.ndarray, "*draw"]  # exp(entropy) of the mass over layers


@dataclass(frozen=True)
class Described:
    """A layer profile and its shape, with standard errors over prompts and heads."""

    per_layer: Errors
    peak_layer: int
    shape: dict[str, Errors]  # by the names in SHAPE; empty where there are no induction heads
    n: int  # prompts

    def interval(self, name: str) -> Interval:
        """One entry of SHAPE with its 95 % interval; no ends where no draw moves it."""
        return interval_of(self.shape[name], n=self.n)

    @property
    def known(self) -> bool:
        """Whether there is a peak and a band to describe."""
        return bool(self.shape) and bool(np.isfinite(self.shape["peak_rel"].value))

    def entries(self) -> dict[str, Any]:
        """For a report: every interval of SHAPE, or None where there is nothing to describe."""
        found: dict[str, Any] = {"peak_layer": self.peak_layer if self.known else None}

        for name in SHAPE:
            found[name] = self.interval(name).to_json() if self.known else None

        return found

    def band(self) -> dict[str, list[float]]:
        """`per_layer` and its 95 % ends, `per_layer_low` and `per_layer_high`."""
        reach = _reach(self.per_layer)
        value = self.per_layer.value

        return {
            "per_layer": value.tolist(),
            "per_layer_low": (value - reach).tolist(),
            "per_layer_high": (value + reach).tolist(),
        }


def interval_of(errors: Errors, *, n: int) -> Interval:
    """A single value with its 95 % interval; no ends where its error is 0 or unknown.

    The peak of a profile is a layer: where no draw moves it, an interval of no width would look
    like knowledge.
    """
    value, reach = float(errors.value), float(_reach(errors))

    if reach == 0:
        return Interval(value, None, None, n, UNIT)

    return Interval(value, value - reach, value + reach, n, UNIT)


def _reach(errors: Errors) -> Float[np.ndarray, "*unit"]:
    """Half of the 95 % interval; 0 where a single head a layer leaves the error unknown."""
    reach = special.stdtrit(errors.freedom, 0.975) * errors.error
    return np.where(np.isfinite(reach), reach, 0.0)


def describe(
    excess: Float[np.ndarray, "prompt layer head"],
    rng: np.random.Generator,
    *,
    mode: str,
    q: float,
    threshold: float,
    resamples: int,
    shaped: bool,
) -> Described:
    """The profile of per-prompt scores and its shape, prompts and heads resampled in turn.

    `threshold`: the null's; the shape is of the heads above it (above_noise). `shaped`: whether
    there are induction heads, and so a shape to describe.
    """
    n_layers, names = excess.shape[1], SHAPE if shaped else ()

    def columns(means: Float[np.ndarray, "draw layer head"]) -> Float[np.ndarray, "draw column"]:
        profile, mass = (
            layer_profile(scores, mode=mode, q=q, threshold=threshold)
            for scores in (means, above_noise(means, threshold))
        )
        shape = profile_shape(profile, mass)
        return np.concatenate([profile, *(getattr(shape, name)[:, None] for name in names)], axis=1)

    with np.errstate(invalid="ignore"):
        found = two_level_errors(excess, rng, resamples=resamples, statistic=columns)

    shape = {name: _column(found, n_layers + i) for i, name in enumerate(names)}
    per_layer = _column(found, slice(n_layers))
    return Described(per_layer, int(per_layer.value.argmax()), shape, len(excess))


def _column(errors: Errors, at: int | slice) -> Errors:
    # Draws that all agree differ from their mean by rounding alone.
    error = np.where(errors.error[at] < 1e-9, 0.0, errors.error[at])
    return Errors(np.asarray(errors.value[at]), np.asarray(error), np.asarray(errors.freedom[at]))


def relative_depth(n_layers: int) -> Float[np.ndarray, " layer"]:
    """(l + 0.5) / L: the middle of each layer, in (0, 1)."""
    return (np.arange(n_layers) + 0.5) / n_layers


def layer_profile(
    scores: Float[np.ndarray, "*draw layer head"], *, mode: str, q: float, threshold: float = np.inf
) -> Float[np.ndarray, "*draw layer"]:
    """One number a layer, of its heads.

    Their mean; the mean of those at or above their q-quantile; or the count of those above
    `threshold`. InputError for an unknown mode or a q outside (0, 1).
    """
    check_mode(mode, q)

    if mode == "mean":
        return scores.mean(axis=-1)

    if mode == "count":
        return (scores > threshold).sum(axis=-1).astype(np.float64)

    high = scores >= np.quantile(scores, q, axis=-1, keepdims=True)
    return (scores * high).sum(axis=-1) / high.sum(axis=-1)


def above_noise(
    scores: Float[np.ndarray, "*draw layer head"], threshold: float
) -> Float[np.ndarray, "*draw layer head"]:
    """The scores of heads above the null's threshold, 0 for the others: what a layer's mass is of.

    Noise alone is above zero in half of the heads. Many layers of it, each with little, would pull
    the centre of a deep model to the middle.
    """
    return np.where(scores > threshold, scores, 0.0)


def check_mode(mode: str, q: float) -> None:
    """InputError for an unknown mode or a quantile outside (0, 1)."""
    if mode not in get_args(Mode):
        raise InputError(f"unknown profile mode `{mode}`; known: {', '.join(get_args(Mode))}")

    if not 0 < q < 1:
        raise InputError(f"the quantile of high scores must lie inside (0, 1), got {q}")


def profile_shape(
    profile: Float[np.ndarray, "*draw layer"],
    mass: Float[np.ndarray, "*draw layer"] | None = None,
) -> Shape:
    """Peak of profiles whose null was already subtracted; centre and width of their mass: the same
    profile of what stands above the noise (above_noise), or else all that is above zero.
    """
    n_layers = profile.shape[-1]
    mass = np.clip(profile if mass is None else mass, 0, None)
    total = mass.sum(axis=-1)
    empty = total <= 0

    peak = profile.argmax(axis=-1)
    vertex = peak + _parabolic_offset(profile, peak)

    with np.errstate(invalid="ignore"):
        centre = mass @ relative_depth(n_layers) / total

    width = _mass_quantile(mass, 0.84) - _mass_quantile(mass, 0.16)
    return Shape(
        peak_layer=np.asarray(peak),
        peak_rel=np.where(empty, np.nan, (peak + 0.5) / n_layers),
        peak_parabolic_rel=np.where(empty, np.nan, (vertex + 0.5) / n_layers),
        centre_of_mass=np.asarray(centre),
        centre_in_layers=np.asarray(centre * n_layers - 0.5),
        bandwidth=np.where(empty, np.nan, width),
        effective_layers=effective_number(mass),
    )


def previous_token_layer(
    previous_token: Float[np.ndarray, "layer head"], *, share: float
) -> float | None:
    """Mean layer of the previous-token heads, each weighing as it attends; None without any.

    Those are heads with at least `share` of their attention one token back.
    """
    attention = np.where(previous_token >= share, previous_token, 0.0).sum(
        axis=1, dtype=np.float64
    )  # [layer]

    if not attention.any():
        return None

    return float(attention @ np.arange(len(attention)) / attention.sum())


def _parabolic_offset(
    profile: Float[np.ndarray, "*draw layer"], peak: Int[np.ndarray, "*draw"] | np.integer
) -> Float[np.ndarray, "*draw"]:
    """From the highest layer to the vertex of the parabola through it and its neighbours.

    In layers, within +-0.5; 0 at the first and the last layer.
    """
    last = profile.shape[-1] - 1

    def at(layer: Any) -> Float[np.ndarray, "*draw"]:
        index = np.expand_dims(np.clip(layer, 0, last), -1)
        return np.asarray(np.take_along_axis(profile, index, axis=-1)[..., 0])

    below, top, above = at(peak - 1), at(peak), at(peak + 1)
    curvature = below - 2 * top + above

    inner = (peak > 0) & (peak < last) & (curvature < 0)
    safe = np.where(inner, curvature, 1.0)
    return np.asarray(np.where(inner, 0.5 * (below - above) / safe, 0.0))


def _mass_quantile(
    mass: Float[np.ndarray, "*draw layer"], share: float
) -> Float[np.ndarray, "*draw"]:
    """Relative depth below which `share` of the mass lies.

    Each layer's mass is spread evenly over its 1 / L of depth.
    """
    n_layers = mass.shape[-1]
    below = np.cumsum(mass, axis=-1)
    wanted = share * below[..., -1:]

    layer = np.minimum((below < wanted).sum(axis=-1, keepdims=True), n_layers - 1)
    inside = np.take_along_axis(mass, layer, axis=-1)
    start = np.take_along_axis(below, layer, axis=-1) - inside

    with np.errstate(invalid="ignore"):
        return np.asarray(((layer + (wanted - start) / inside) / n_layers)[..., 0])
