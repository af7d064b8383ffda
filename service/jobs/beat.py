"""What workers and Redis say about themselves, for both sides of the job store."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FULL = 0.8
"""Part of Redis's memory (`maxmemory`) from which new jobs and previews are turned away, so that
those that run can still end."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A sign of life: the models that a worker serves, and row-calls/s by checkpoint.

    rates: of the checkpoints that it has loaded, and so measured.
    """

    models: list[str]
    rates: dict[str, float]

    def to_json(self) -> str:
        """As it is kept in Redis."""
        return json.dumps(asdict(self))


def memory_low(info: Mapping[str, Any]) -> bool:
    """Whether memory is short, by the section `memory` of Redis's INFO; never without a limit."""
    limit = int(info["maxmemory"])
    return limit > 0 and int(info["used_memory"]) >= FULL * limit
