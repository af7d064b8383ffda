"""What a worker says about itself."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A sign of life: the models that a worker serves, and row-calls/s by checkpoint.

    rates: of the checkpoints that it has loaded, and so measured.
    """

    models: list[str]
    rates: dict[str, float]

    def to_json(self) -> str:
        """As it is kept."""
        return json.dumps(asdict(self))
