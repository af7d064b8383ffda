"""What a worker says about itself."""

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A sign of life: the models that a worker serves, and row-calls/s by checkpoint.

    rates: of the checkpoints that it has loaded, and so measured. failed: the names of models that
    it has and cannot serve, and why.
    """

    models: list[str]
    rates: dict[str, float]
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """As it is kept."""
        return json.dumps(asdict(self))
