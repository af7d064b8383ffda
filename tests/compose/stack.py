"""docker-compose.yml as a running project of its own, with an .env of its own."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent.parent
PROCESSES = 2  # of each worker
IMAGES = {"fokker-redis": "redis:7-bookworm"} | dict.fromkeys(
    ("fokker-api", "fokker-worker"), "python:3.11-slim-bookworm"
)
"""What is built here, and on what."""

T = TypeVar("T")


class Failed(Exception):  # noqa: N818 - it is the outcome of a check
    """Something did not hold."""


def expect(held: object, what: str) -> None:
    """Raises `Failed` unless it held."""
    if not held:
        raise Failed(what)


def wait_until(condition: Callable[[], T], what: str, limit: float = 60.0) -> T:
    """The first true value of `condition`, asked for up to `limit` seconds."""
    end = time.monotonic() + limit
    while not (found := condition()):
        expect(time.monotonic() < end, f"waited {limit:.0f} s in vain for {what}")
        time.sleep(0.1)
    return found


def run(*command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; raises `Failed` with what it said if it fails."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if check and ran.returncode:
        raise Failed(f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
    return ran


def compose_command() -> list[str]:
    """Compose 2, or else 1.29."""
    if run("docker", "compose", "version", check=False).returncode == 0:
        return ["docker", "compose"]
    expect(shutil.which("docker-compose"), "there is neither `docker compose` nor docker-compose")
    return ["docker-compose"]


@dataclass
class Stack:
    """The project. port: of this machine, where its API is published. key: of the owner tester."""

    port: int
    name: str = field(default_factory=lambda: f"fokker-test-{os.getpid()}")
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="fokker-compose-")))
    command: list[str] = field(default_factory=compose_command)
    key: str = ""

    def write_env(self) -> None:
        """An .env by docker/new-env, which writes it beside the folder that it stands in."""
        (self.folder / "docker").mkdir()
        script = shutil.copy(ROOT / "docker" / "new-env", self.folder / "docker")
        shutil.copy(ROOT / ".env.example", self.folder)
        self.key = run("sh", str(script), "tester").stdout.split()[-1]
        with (self.folder / ".env").open("a") as env:
            # A small lease, so that what a killed worker had is taken up soon; the workers share
            # the cores of one machine.
            threads = max(1, (os.cpu_count() or 2) // 2)
            env.write(f"API_BIND=127.0.0.1:{self.port}\nFOKKER_LEASE=6\n")
            env.write(f"OMP_NUM_THREADS={threads}\nFOKKER_WORKER_PROCESSES={PROCESSES}\n")

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: str, env: Path | None = None, check: bool = True) -> str:
        """Run Compose on the project; what it said."""
        options = ["-p", self.name, "-f", str(ROOT / "docker-compose.yml")]
        options += ["--env-file", str(env or self.folder / ".env")]
        plain = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        ran = run(*self.command, *options, *arguments, check=check, cwd=ROOT, env=plain)
        return ran.stdout + ran.stderr

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """What `docker inspect` tells of the project's containers, or of one service's."""
        filters = ["--filter", f"label=com.docker.compose.project={self.name}"]
        if service:
            filters += ["--filter", f"label=com.docker.compose.service={service}"]
        found = run("docker", "ps", "-aq", *filters).stdout.split()
        inspected: list[dict[str, Any]] = json.loads(run("docker", "inspect", *found).stdout)
        return inspected if found else []

    def execute(self, container: dict[str, Any], *command: str) -> str:
        """What a command in a container writes."""
        return run("docker", "exec", container["Id"], *command).stdout

    def remove(self) -> None:
        """Remove containers, networks and volumes."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "60")
        shutil.rmtree(self.folder)

    def left(self) -> list[str]:
        """What of the project is still there."""
        label = f"label=com.docker.compose.project={self.name}"
        kinds: Sequence[tuple[str, ...]] = (("ps", "-a"), ("volume", "ls"), ("network", "ls"))
        return [
            line
            for kind in kinds
            for line in run("docker", *kind, "-q", "--filter", label).stdout.split()
        ]


def _is_setting(name: str) -> bool:
    """Whether a variable of this environment would decide what the stack's own .env should."""
    return bool(re.match(r"FOKKER_|REDIS_|API_|WORKER_|MODELS$|KEYS_FILE$|OMP_", name))


def image_sizes() -> dict[str, tuple[int, int]]:
    """Bytes of every image, and of those that it adds to its base."""

    def size(image: str) -> int:
        return int(run("docker", "image", "inspect", "-f", "{{.Size}}", image).stdout)

    return {image: (size(image), size(image) - size(base)) for image, base in IMAGES.items()}
