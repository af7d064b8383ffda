"""What a check found, and whether that is allowed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.selfcheck.deployment import Deployment
from service.selfcheck.mixture import Floats

Z = 4.5
"""Standard errors that a random quantity may be off: one in 150,000 is by chance.

A check has some hundreds of them, and the same seeds draw the same images every time.
"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One comparison; found and allowed are JSON values."""

    what: str
    found: Any
    allowed: Any
    passed: bool


Check = Callable[[Deployment], Iterator[Finding]]


def same(what: str, found: Any, expected: Any) -> Finding:
    """A value that must be this one."""
    return Finding(what=what, found=found, allowed=expected, passed=bool(found == expected))


def at_most(what: str, found: Floats | float, allowed: float) -> Finding:
    """Numbers none of which may be above `allowed`, or NaN."""
    worst = float(np.max(found))
    return Finding(what=what, found=worst, allowed=allowed, passed=worst <= allowed)


def between(what: str, found: Floats | float, low: float, high: float) -> Finding:
    """Numbers all of which must be from `low` to `high`; found is the one that is furthest out."""
    values = np.ravel(found)
    worst = float(values[np.argmax(np.abs(values - 0.5 * (low + high)))])
    return Finding(what=what, found=worst, allowed=[low, high], passed=low <= worst <= high)
