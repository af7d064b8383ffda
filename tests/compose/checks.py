"""What must hold of the running stack. Each check raises `Failed`, and returns what to print."""

import os
import socket
import sys
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from service.client import Client
from tests.compose.stack import PROCESSES, Stack, expect, run, wait_until
from tests.docker.exported import Exported, of_api, of_worker

DIGIT = np.clip(17.0 - 4 * np.abs(np.arange(8)[:, None] - np.arange(8)), 0, 16)[None]
"""One image, in the levels of digits: a diagonal stroke."""

INIT = ("/sbin/docker-init", "/usr/sbin/docker-init")

MEBIBYTE = 2**20


def missing_key(stack: Stack) -> str:
    """Without a key `up` stops, and names the command that makes one."""
    nothing = stack.folder / "nothing.env"
    nothing.write_text("REDIS_PASSWORD=x\nGRAFANA_PASSWORD=x\n")
    said = stack.compose("up", "-d", env=nothing, check=False)
    expect("FOKKER_API_KEYS" in said and "docker/new-env OWNER" in said, f"up said: {said}")
    expect(not stack.left(), "up has begun without a key")
    return "up stops, and names docker/new-env"


def api_image_is_small(sizes: dict[str, tuple[int, int]]) -> str:
    """The API's image has no torch, and less than 300 MB beyond its base."""
    added = sizes["fokker-api"][1]
    expect(added < 300e6, f"the API's image adds {added / 1e6:.0f} MB to its base")
    command = ("docker", "run", "--rm", "--entrypoint", "python", "fokker-api", "-c")
    expect(run(*command, "import torch", check=False).returncode == 1, "the API's image has torch")
    return f"{added / 1e6:.0f} MB, no torch"


def nobody_without_a_key(stack: Stack) -> str:
    """Every route that is somebody's answers 401 without a key, and with a wrong one."""
    for headers in ({}, {"Authorization": "Bearer fk_wrong"}):
        for method, path in (("POST", "/generate"), ("GET", "/jobs"), ("GET", "/models")):
            answer = httpx.request(method, stack.url + path, headers=headers)
            expect(answer.status_code == 401, f"{method} {path}: {answer.status_code} without key")
    return "401"


def all_operations(stack: Stack) -> str:
    """The three operations give what they should."""
    with Client(stack.url, api_key=stack.key) as client:
        drawn = client.generate("digits", count=2, seed=7, class_label=3)
        expect(drawn.images[0].size == (8, 8), "an image of another size")
        inverted = client.invert(DIGIT, model="digits")
        error = float(inverted.round_trip_max_error[0])
        expect(error < 0.1, f"the round trip is off by {error}")
        found = client.loglik(DIGIT, model="digits", seed=1)
        bits = float(found.bits_per_dim[0])
        expect(0 < bits < 20, f"{bits} bits/dim")
    return f"round trip within {error:.4f}, {bits:.2f} bits/dim"


def selfcheck(stack: Stack) -> str:
    """`fokker selfcheck` finds nothing wrong."""
    command = [sys.executable, "-P", "-m", "service", "selfcheck", "--url", stack.url]
    ran = run(*command, env=os.environ | {"FOKKER_API_KEY": stack.key})
    return f"{len(ran.stdout.strip().splitlines())} lines, nothing wrong"


def a_stream(stack: Stack) -> str:
    """A job's events arrive one after another, previews among them."""
    with Client(stack.url, api_key=stack.key) as client:
        seen: list[str] = []
        stream = {"every": 25, "what": "x0"}
        client.generate(
            "digits", count=1, stream=stream, on_event=lambda event: seen.append(event.type)
        )
    expect(seen[0] == "queued" and seen[-1] == "succeeded", f"events: {seen}")
    expect(seen.count("preview") >= 5, f"events: {seen}")
    return f"{len(seen)} events, {seen.count('preview')} previews"


def nobody_is_root(stack: Stack) -> str:
    """No process of any container has root's user or a capability."""
    for container in stack.containers():
        name = container["Name"]
        status = stack.execute(container, "sh", "-c", "cat /proc/[0-9]*/status")
        for line in status.splitlines():
            kind, *values = line.split()
            if kind == "Uid:":
                expect("0" not in values, f"{name} has a process of root's")
            if kind in ("CapEff:", "CapPrm:"):
                expect(int(values[0], 16) == 0, f"{name} has a process with capabilities")
    return f"{len(stack.containers())} containers"


def nothing_is_written_elsewhere(stack: Stack) -> str:
    """Root file systems are read-only, and hold what the images hold."""
    for container in stack.containers():
        name = container["Name"]
        expect(container["HostConfig"]["ReadonlyRootfs"], f"{name} may write to its root")
        tried = run("docker", "exec", container["Id"], "sh", "-c", "echo > /written", check=False)
        expect(tried.returncode != 0, f"{name} wrote /written")
        mounts = [mount["Destination"] for mount in container["Mounts"]]
        for line in run("docker", "diff", container["Id"]).stdout.splitlines():
            kind, path = line.split(maxsplit=1)
            # What the engine itself makes: its init, and what something is mounted on.
            made = any(mount.startswith(path) for mount in [*mounts, "/tmp", *INIT])
            expect(kind != "D" and made, f"{name}: {line}")
    return "read-only"


def redis_is_out_of_reach(stack: Stack) -> str:
    """Redis has no port on this machine, no route from it, and asks for its password."""
    (redis,) = stack.containers("redis")
    expect(not redis["HostConfig"]["PortBindings"], "a port of Redis is published")
    for network in redis["NetworkSettings"]["Networks"].values():
        for host in (network["IPAddress"], "127.0.0.1"):
            expect(not _is_redis(host, 6379), f"Redis is reached from this machine at {host}")
    said = run("docker", "exec", redis["Id"], "redis-cli", "get", "x", check=False)
    expect("NOAUTH" in said.stdout + said.stderr, "Redis answers without a password")
    return "no port, no route, a password"


def _is_redis(host: str, port: int) -> bool:
    """Whether a Redis answers there; something else may (a proxy that takes every connection)."""
    try:
        with socket.create_connection((host, port), timeout=2) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def a_worker_is_killed(stack: Stack) -> str:
    """Jobs of a worker that is killed are taken up by the other one, and all end well."""
    workers = stack.containers("worker")
    with Client(stack.url, api_key=stack.key) as client:
        jobs = [
            client.submit("generate", {"model": "digits", "count": 8, "seed": seed})
            for seed in range(12)
        ]
        wait_until(lambda: _running_on(client, jobs, workers), "jobs on both workers")
        run("docker", "kill", workers[0]["Id"])
        ended = [client.wait(job) for job in jobs]
    states = [job.status for job in ended]
    expect(states == ["succeeded"] * len(jobs), f"after a worker was killed: {states}")
    again = sum(job.document["attempt"] > 1 for job in ended)
    expect(again, "the killed worker had no job: nothing was shown")
    run("docker", "start", workers[0]["Id"])
    return f"{len(jobs)} jobs succeeded, {again} at their second attempt"


def _running_on(client: Client, jobs: list[Any], workers: list[dict[str, Any]]) -> bool:
    """Whether every worker has started one of the jobs."""
    hosts = {container["Config"]["Hostname"] for container in workers}
    started = set()
    for job in jobs:
        if client.job(job).status == "running":
            for event in client.events(job):
                if event.type == "started":
                    started.add(event.data["worker"].split("-")[0])
                    break
    return started == hosts


def redis_is_restarted(stack: Stack) -> str:
    """What waits, runs or is done survives a Redis that is killed."""
    (redis,) = stack.containers("redis")
    with Client(stack.url, api_key=stack.key) as client:
        done = client.generate("digits", count=1, seed=3)
        jobs = [
            client.submit("generate", {"model": "digits", "count": 8, "seed": seed})
            for seed in range(8)
        ]
        # The log is written every second.
        wait_until(lambda: any(client.job(job).status != "queued" for job in jobs), "a start")
        _wait_for_log(stack, redis)
        run("docker", "kill", redis["Id"])
        answer = httpx.post(
            stack.url + "/generate", json={"model": "digits"}, headers=_bearer(stack), timeout=30
        )
        expect(answer.status_code == 503, f"without Redis: {answer.status_code}")
        expect(httpx.get(stack.url + "/healthz").is_success, "/healthz needs Redis")
        run("docker", "start", redis["Id"])
        wait_until(client.ready, "readiness after Redis came back", 120)
        states = [client.wait(job).status for job in jobs]
        expect(states == ["succeeded"] * len(jobs), f"after Redis was killed: {states}")
        again = client.generate("digits", count=1, seed=3)
        expect(np.array_equal(done.array, again.array), "the same seed draws another image")
        expect(client.artifact(done.job, "0.png"), "a result is gone")
    return f"{len(jobs)} jobs succeeded"


def _wait_for_log(stack: Stack, redis: dict[str, Any]) -> None:
    """Until Redis has written what was there when it was asked."""
    ask = 'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli waitaof 1 0 5000 || sleep 2'
    stack.execute(redis, "sh", "-c", ask)


def _bearer(stack: Stack) -> dict[str, str]:
    return {"Authorization": f"Bearer {stack.key}"}


def every_metric_is_there(stack: Stack) -> str:
    """API and workers give every metric of docs/metrics.md, with values that fit what was done."""
    api = samples(httpx.get(stack.url + "/metrics").text)
    ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
    workers = [
        samples(stack.execute(container, "python", "-c", ask))
        for container in stack.containers("worker")
    ]
    _expect_all(of_api(), api)
    _expect_all(of_worker(), [sample for worker in workers for sample in worker])
    # The self-check, which cancels and removes jobs, names another model.
    ended = total(api, "fokker_jobs_ended_total", model="digits", status="succeeded")
    submitted = total(api, "fokker_jobs_submitted_total", model="digits")
    expect(ended == submitted, f"of {submitted:.0f} jobs {ended:.0f} succeeded")
    expect(total(api, "fokker_leases_expired_total", outcome="queued") > 0, "no lease expired")
    expect(total(api, "fokker_redis_up") == 1, "Redis is not up")
    expect(total(api, "fokker_live_workers") == len(workers) * PROCESSES, "a worker is not alive")
    expect(total(api, "fokker_jobs_waiting") == 0, "jobs wait")
    expect(total(api, "fokker_row_calls_per_second") > 0, "no rate")
    accepted = sum(
        total(api, "fokker_http_requests_total", route="/generate", status=status)
        for status in ("200", "202")
    )
    submitted = total(api, "fokker_jobs_submitted_total", operation="generate")
    expect(accepted >= submitted, f"{accepted:.0f} answers to {submitted:.0f} jobs: not all count")
    used = total(api, "fokker_redis_memory_used_bytes")
    limit = total(api, "fokker_redis_memory_limit_bytes")
    expect(MEBIBYTE / 2 < used < limit, f"Redis uses {used} of {limit} bytes")
    return f"{ended:.0f} jobs, Redis uses {used / MEBIBYTE:.1f} MiB"


def samples(text: str) -> list[Any]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def _expect_all(metrics: list[Exported], samples: list[Any]) -> None:
    found = {sample.name for sample in samples}
    missing = [metric.name for metric in metrics if not found & set(metric.series)]
    expect(not missing, f"not exported: {missing}")
    for sample in samples:
        expect(sample.value == sample.value and sample.value >= 0, f"{sample.name}: {sample.value}")


def total(samples: list[Any], name: str, **labels: str) -> float:
    """The sum of a series' values with these labels."""
    return sum(
        float(sample.value)
        for sample in samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
