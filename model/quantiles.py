"""Where a value stands among those of held-out images, of which a checkpoint keeps quantiles.

The training metadata of a checkpoint may have an entry

    "quantiles": {"bits_per_dim": {"levels": [0, 0.01, …, 1], "values": […], …}, …}

where values[k] is the quantile of level levels[k] of the held-out images' bits per dimension. What
else it says (the method and its settings) is for readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Quantiles:
    """An empirical distribution. levels: rising from 0 to 1; values: of each, never falling."""

    levels: NDArray[np.float64]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.levels.ndim != 1 or self.levels.shape != self.values.shape or len(self.levels) < 2:
            raise ValueError(
                "levels and values must be two lists of one length, at least 2, got "
                f"{self.levels.shape} and {self.values.shape}"
            )
        if self.levels[0] != 0 or self.levels[-1] != 1 or not (np.diff(self.levels) > 0).all():
            raise ValueError("levels must rise from 0 to 1")
        if not np.isfinite(self.values).all() or not (np.diff(self.values) >= 0).all():
            raise ValueError("values must be finite and must not fall")

    def percentile(self, value: float) -> float:
        """The percentage, 0 … 100, of the distribution that is at most `value`.

        Linear between two quantiles. Below the smallest 0, from the largest on 100.

        >>> Quantiles(np.array([0.0, 0.5, 1.0]), np.array([1.0, 2.0, 4.0])).percentile(3.0)
        75.0
        """
        # Of equal values, interp takes the last: all of them are at most `value`.
        return float(100.0 * np.interp(value, self.values, self.levels))


def held_out_quantiles(training: Mapping[str, Any], name: str) -> Quantiles | None:
    """The quantiles of `name` in a checkpoint's training metadata; None if it has none.

    Raises `ValueError` where there is an entry but it is unusable.
    """
    entries = training.get("quantiles")
    if entries is None:
        return None
    try:
        entry = entries[name]
        return Quantiles(_numbers(entry["levels"]), _numbers(entry["values"]))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"unusable quantiles of {name}: {error!r}") from error


def _numbers(given: Any) -> NDArray[np.float64]:
    """A list of JSON numbers; `TypeError` for anything else."""
    if not isinstance(given, list):
        raise TypeError(f"a list is needed, got {type(given).__name__}")
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in given):
        raise TypeError("a list of numbers is needed")
    return np.array([float(one) for one in given], dtype=np.float64)
