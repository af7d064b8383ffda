"""What the tests of the service share: models' cards, jobs, and waiting with a limit."""

import time
from collections.abc import Callable
from typing import Any

from service.jobs.job import Job, new_job_id
from service.jobs.parameters import Priority

ROOMS: dict[Priority, int] = {"interactive": 64, "batch": 64}  # of a worker with nothing to do
LIMIT = 10.0  # seconds that a test waits for anything


def card(name: str, shape: list[int], levels: int, class_names: list[str] | None) -> dict[str, Any]:
    digest = f"sha256:{name}"
    names = {"name": name, "digest": digest, "class_names": class_names}
    process = {"name": "vp_linear", "t_min": 1e-3, "t_max": 1.0}
    return names | {"shape": shape, "levels": levels, "low": -1.0, "high": 1.0, "process": process}


CARDS = [
    card("digits", [1, 8, 8], 17, [str(digit) for digit in range(10)]),
    card("faces", [3, 6, 5], 256, None),
    card("sprites", [4, 6, 5], 256, None),
]


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` gives once it is true, waiting for it up to LIMIT."""
    limit = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < limit, "the condition never came true"
        time.sleep(0.01)
    return found


def a_job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "id": new_job_id(),
        "operation": "generate",
        "model": "digits",
        "digest": "sha256:digits",
        "parameters": {"model": "digits"},
    }
    return Job(**(fields | changes))
