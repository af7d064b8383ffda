"""When to try again, and when to give up."""

import random

from service.client.errors import ServiceUnavailable

FIRST_PAUSE = 0.5  # seconds, doubled with every failure
LONGEST_PAUSE = 8.0
LONGEST_ASKED = 60.0
"""Seconds of `Retry-After` that are waited at most; a service that asks for more is given up."""


class Patience:
    """Counts failures in a row; `retries` of them are borne."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failures = 0

    def pause(self, failure: ServiceUnavailable) -> float:
        """Seconds to wait after this failure. Raises it when it is the last one borne.

        As long as the service asked for, else exponentially more, less a random part: clients
        that lost the same service must not all return at once.
        """
        asked = failure.retry_after
        if self._failures >= self._retries or (asked or 0.0) > LONGEST_ASKED:
            raise failure
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**self._failures)
        self._failures += 1
        return random.uniform(0.5, 1.0) * longest if asked is None else asked

    def reset(self) -> None:
        """Start to count anew: something went well."""
        self._failures = 0
