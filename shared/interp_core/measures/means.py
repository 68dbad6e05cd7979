"""Means of activations over the places that count: what mean ablation puts in their place."""

from collections.abc import Hashable, Mapping
from typing import Any, Generic, TypeVar

from jaxtyping import Bool
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


class PlaceMeans(Generic[Key]):
    """Means of activations by name, over all places of all batches; padding does not count.

    Sums are in float64, so that how prompts are dealt into batches is lost in the rounding of the
    means, which are float32.
    """

    def __init__(self) -> None:
        self._sums: dict[Key, Any] = {}
        self._places = 0

    def add(self, activations: Mapping[Key, Tensor], counted: Bool[Tensor, "row position"]) -> None:
        """One batch: activations are [row, position, ...]."""
        for key, values in activations.items():
            total = values[counted.to(values.device)].double().sum(dim=0)
            self._sums[key] = self._sums.get(key, 0.0) + total

        self._places += int(counted.sum())

    def means(self) -> dict[Key, Tensor]:
        """By name, without the axes of row and position."""
        return {key: (total / self._places).float() for key, total in self._sums.items()}
