import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from service.jobs.errors import ArtifactsError, StoreError
from service.jobs.lease import Claim, LeaseLost
from tests.worker.conftest import Stopped
from worker import courier as couriers
from worker.courier import Courier


@pytest.fixture
def courier(monkeypatch: pytest.MonkeyPatch) -> Iterator[Courier]:
    monkeypatch.setattr(couriers, "_RETRY_SECONDS", 0.01)
    courier = Courier()
    courier.start()
    yield courier
    courier.stop(5)


def test_deliveries_arrive_in_order(courier: Courier, claimed: Callable[..., Claim]) -> None:
    claim, done = claimed("generate"), threading.Event()
    arrived: list[int] = []
    for number in range(100):
        courier.send(claim, lambda number=number: arrived.append(number))
    courier.send(claim, done.set)
    assert done.wait(10)
    assert arrived == list(range(100))


def test_a_delivery_is_tried_again_until_redis_is_back(
    courier: Courier, claimed: Callable[..., Claim]
) -> None:
    done = threading.Event()
    failures = iter([StoreError("away"), StoreError("slow")])

    def deliver() -> None:
        for error in failures:
            raise error
        done.set()

    courier.send(claimed("generate"), deliver)
    assert done.wait(10)


def test_nothing_more_is_written_for_a_lost_lease(
    courier: Courier, claimed: Callable[..., Claim]
) -> None:
    lost, held, done = claimed("generate"), claimed("generate"), threading.Event()
    late: list[str] = []

    def refused() -> None:
        raise LeaseLost(lost.job.id)

    courier.send(lost, refused)
    courier.send(lost, lambda: late.append("written"))
    courier.send(held, done.set)
    assert done.wait(10)
    assert late == []


def test_a_result_that_cannot_be_encoded_fails_its_job(
    stopped: Stopped, claimed: Callable[..., Claim]
) -> None:
    claim = claimed("generate")

    def broken() -> None:
        raise ValueError("no such picture format")

    stopped.courier.send(claim, broken)
    stopped.delivered()
    job = stopped.job(claim)
    assert job.status == "failed"
    assert job.error is not None
    assert "worker's log" in job.error["detail"]


def test_a_claim_is_kept_alive_until_its_last_delivery(
    courier: Courier, claimed: Callable[..., Claim]
) -> None:
    claim, begin, done = claimed("generate"), threading.Event(), threading.Event()

    def slow() -> None:
        assert begin.wait(10)

    courier.send(claim, slow)
    courier.send(claim, lambda: None)
    assert courier.claims() == [claim]
    begin.set()
    courier.send(claimed("generate"), done.set)
    assert done.wait(10)
    assert claim not in courier.claims()


def test_deliveries_leave_the_cores_to_the_engine(
    courier: Courier, claimed: Callable[..., Claim]
) -> None:
    threads: list[int] = []
    done = threading.Event()
    courier.send(claimed("generate"), lambda: threads.append(torch.get_num_threads()))
    courier.send(claimed("generate"), done.set)
    assert done.wait(10)
    assert threads == [1]


def test_files_that_find_no_place_for_long_fail_their_job_which_says_why(
    stopped: Stopped, claimed: Callable[..., Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(couriers, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(couriers, "_PATIENCE", 0.1)
    claim, tries = claimed("generate"), []

    def refused() -> None:
        tries.append(1)
        raise ArtifactsError("artifacts cannot be written now (PermissionError: Access Denied)")

    stopped.courier.send(claim, refused)
    stopped.delivered()
    job = stopped.job(claim)
    assert job.error is not None
    assert "Access Denied" in job.error["detail"]
    assert len(tries) > 1
