"""`scripts/test-compose`: the stack of docker-compose.yml, built, used, broken and removed."""

import argparse
import sys
import time
from collections.abc import Callable

import httpx

from service.redis_server import free_port
from tests.compose import checks
from tests.compose.stack import PROCESSES, Failed, Stack, expect, image_sizes, wait_until

WORKERS = 2

RUNNING: list[Callable[[Stack], str]] = [
    checks.nobody_without_a_key,
    checks.all_operations,
    checks.selfcheck,
    checks.nobody_is_root,
    checks.nothing_is_written_elsewhere,
    checks.redis_is_out_of_reach,
    checks.a_worker_is_killed,
    checks.redis_is_restarted,
    checks.a_stream,
    checks.every_metric_is_there,
]
"""In this order: the last one counts what the others have done, as far as no restart forgot it."""


def main() -> int:
    """Run everything; the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/test-compose")
    parser.add_argument("--keep", action="store_true", help="leave the containers up")
    keep = parser.parse_args().keep
    stack = Stack(free_port())
    try:
        run_all(stack)
    except BaseException as error:
        print(f"FAILED: {error or type(error).__name__}", file=sys.stderr)
        print(stack.compose("logs", "--tail", "20", check=False), file=sys.stderr)
        if not isinstance(error, Failed):
            raise
        return 1
    finally:
        if keep:
            command = *stack.command, "-p", stack.name, "--env-file", stack.folder / ".env"
            print(f"up on {stack.url} with the key {stack.key}; to remove it:")
            print(" ", *command, "down", "-v")
        else:
            begun = time.monotonic()
            stack.remove()
            say("stopped and removed", f"{time.monotonic() - begun:.1f} s")
    if not keep:
        expect(not stack.left(), f"left behind: {stack.left()}")
    return 0


def run_all(stack: Stack) -> None:
    """Build, start and check; raises `Failed` for the first thing that does not hold."""
    stack.write_env()
    stack.compose("config", "-q")
    say("docker-compose.yml", "valid")
    say("without a key", checks.missing_key(stack))
    build(stack)
    start(stack)
    for check in RUNNING:
        say(check.__name__.replace("_", " "), check(stack))


def say(what: str, outcome: str) -> None:
    """One line of the report."""
    print(f"{what:<34} {outcome}", flush=True)


def build(stack: Stack) -> None:
    """Build the images, and say how large they are."""
    begun = time.monotonic()
    stack.compose("build", "redis", "api", "worker")
    say("images built", f"{time.monotonic() - begun:.0f} s")
    sizes = image_sizes()
    for image, (size, added) in sizes.items():
        say(image, f"{size / 1e6:.0f} MB, {added / 1e6:.0f} MB of them beyond its base")
    say("the API's image", checks.api_image_is_small(sizes))


def start(stack: Stack) -> None:
    """Bring everything up, and draw the first image."""
    begun = time.monotonic()
    stack.compose("up", "-d", "--scale", f"worker={WORKERS}", "redis", "api", "worker")
    wait_until(lambda: _draws(stack), "the first image", 180)
    say("from up to the first image", f"{time.monotonic() - begun:.1f} s")
    wait_until(lambda: _live(stack) == WORKERS * PROCESSES, "both workers")


def _draws(stack: Stack) -> bool:
    """Whether README's first request is answered with an image."""
    headers = {"Authorization": f"Bearer {stack.key}", "Prefer": "wait=30"}
    body = {"model": "digits", "class_label": 3, "count": 1, "seed": 7}
    try:
        answer = httpx.post(f"{stack.url}/generate", json=body, headers=headers, timeout=60)
    except httpx.TransportError:
        return False
    return answer.status_code == 200 and answer.json()["status"] == "succeeded"


def _live(stack: Stack) -> float:
    text = httpx.get(f"{stack.url}/metrics").text
    return checks.total(checks.samples(text), "fokker_live_workers")


sys.exit(main())
