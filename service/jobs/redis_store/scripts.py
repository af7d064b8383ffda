"""The scripts that Redis runs: each move of a job is one of them, hence atomic.

Each file of this folder is one script behind `prelude.lua`; the legal transitions and the names
that they share with Python are written in front from their one place.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from service.jobs.job import TRANSITIONS
from service.jobs.parameters import PRIORITIES
from service.jobs.redis_store import keys


@cache
def source(name: str) -> str:
    """The Lua text of the script `name`, ready to run."""
    folder = files("service.jobs.redis_store")
    prelude = folder.joinpath("prelude.lua").read_text()
    return "\n".join((_shared(), prelude, folder.joinpath(f"{name}.lua").read_text()))


def arguments(data: bytes | None = None, /, **named: Any) -> list[str | bytes]:
    """ARGV of a script: named arguments as JSON, then bytes if the script stores any."""
    encoded = json.dumps({name: value for name, value in named.items() if value is not None})
    return [encoded] if data is None else [encoded, data]


def _shared() -> str:
    moves = ", ".join(
        f"{status} = {{{', '.join(f'{target} = true' for target in sorted(targets))}}}"
        for status, targets in TRANSITIONS.items()
    )
    priorities = ", ".join(f"'{priority}'" for priority in PRIORITIES)
    return "\n".join(
        (
            f"local LEGAL = {{{moves}}}",
            f"local PRIORITIES = {{{priorities}}}",
            f"local ARTIFACT, FILE = '{keys.ARTIFACT}', '{keys.FILE}'",
            f"local JOB_OF, EVENTS_OF = '{keys.job('%s')}', '{keys.events('%s')}'",
            f"local INPUTS_OF, PREVIEWS_OF = '{keys.inputs('%s')}', '{keys.previews('%s')}'",
            f"local QUEUE_OF, RUNNING_OF = '{keys.queue('%s', '%s')}', '{keys.running('%s')}'",
            f"local CLAIM_OF, OWNED_OF = '{keys.claim('%s')}', '{keys.owned('%s')}'",
            f"local REQUEST_OF = '{keys.request('%s')}'",
        )
    )
