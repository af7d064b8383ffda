"""What clients see when the last worker is lost, and when one comes back."""

from collections.abc import Callable

import pytest

from tests.e2e.running import Part, Service, wait_until

SHORT = {"model": "digits", "count": 1, "seed": 5, "sampler": {"name": "ddim", "steps": 10}}
LONG = {"model": "digits", "count": 64, "seed": 6, "sampler": {"name": "ddpm", "steps": 2000}}


@pytest.mark.timeout(300)
def test_jobs_wait_for_a_worker_to_return(
    own_service: tuple[Service, Callable[[], Part]],
) -> None:
    service, start_worker = own_service
    worker = start_worker()
    service.succeeded(service.submit("/generate", SHORT))
    worker.kill_group()
    wait_until(lambda: service.ready() == 503, "/readyz to turn 503", limit=20)
    assert service.client.get("/healthz").status_code == 200

    waiting = service.submit("/generate", SHORT)
    assert service.get(waiting)["status"] == "queued"
    assert service.client.get("/models").json()["models"][0]["live"] is False

    start_worker()
    assert service.ready() == 200
    assert service.succeeded(waiting)["attempt"] == 1


@pytest.mark.timeout(300)
def test_a_job_of_a_lost_worker_is_tried_again(
    own_service: tuple[Service, Callable[[], Part]],
) -> None:
    service, start_worker = own_service
    worker = start_worker()
    job = service.submit("/generate", LONG | {"sampler": {"name": "ddpm", "steps": 500}})
    wait_until(lambda: service.get(job)["status"] == "running", "the job to run", limit=20)
    worker.kill_group()
    start_worker()
    assert service.succeeded(job)["attempt"] == 2
    kinds = [event.event for event in service.events(job)]
    assert kinds.count("retrying") == 1
    assert kinds.count("succeeded") == 1
