import re

import pytest

from service.jobs.job import FINISHED, TRANSITIONS, Job, Status, new_job_id
from service.jobs.redis_store.hashes import hash_of, job_of
from service.jobs.redis_store.scripts import source


def test_a_job_that_ended_never_moves_again():
    assert {status for status in Status if not TRANSITIONS[status]} == FINISHED
    assert {Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.ABORTED} == FINISHED


def test_every_status_can_be_reached_from_queued():
    reached, front = set(), {Status.QUEUED}
    while front:
        reached |= front
        front = {target for status in front for target in TRANSITIONS[status]} - reached
    assert reached == set(Status)


def test_only_a_running_job_succeeds_or_fails():
    for target in (Status.SUCCEEDED, Status.FAILED):
        assert [status for status in Status if target in TRANSITIONS[status]] == [Status.RUNNING]


@pytest.mark.parametrize("status", Status)
def test_the_scripts_carry_the_same_transitions(status: Status):
    legal = re.search(rf"\b{status} = {{([^}}]*)}}", source("claim"))
    assert legal is not None
    assert set(re.findall(r"(\w+) = true", legal[1])) == set(TRANSITIONS[status])


def test_ids_are_distinct_safe_in_a_url_and_no_option():
    ids = {new_job_id() for _ in range(500)}
    assert len(ids) == 500
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{20,}", job_id) for job_id in ids)


def test_a_job_comes_back_from_its_hash():
    job = Job(
        id="a",
        operation="invert",
        model="digits",
        digest="sha256:0",
        parameters={"model": "digits", "solver": {"name": "heun", "steps": 3}},
        priority="batch",
        rows=4,
        calls=12,
        owner="me",
        status=Status.FAILED,
        attempt=2,
        created=1.5,
        started=2.25,
        finished=3.125,
        error={"title": "ü"},
        result={"images": []},
        deadline=9.5,
        cancel_reason="requested",
        artifacts={"0.png": "image/png"},
        last_event="3125-0",
    )
    stored = {name.encode(): value.encode() for name, value in hash_of(job).items()}
    assert job_of(stored) == job
