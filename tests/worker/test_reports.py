"""How often a job tells where it is."""

import pytest

from model.data import DataSpec
from service.jobs.parameters import GenerateParameters, Stream
from worker.reports import PREVIEWS_AT_ONCE, STEP_INTERVAL, STEPS_A_SECOND, Reports

SPEC = DataSpec(shape=(1, 2, 2), levels=256)


@pytest.mark.parametrize(("jobs", "interval"), [(1, STEP_INTERVAL), (64, 64 / STEPS_A_SECOND)])
def test_all_jobs_share_a_bound_of_steps(jobs: int, interval: float) -> None:
    reports = Reports(SPEC, GenerateParameters(model="m"))
    ticks = [0.05 * n for n in range(1, 2001)]  # 100 seconds
    told = sum(reports.wants_step(now, jobs) for now in ticks)
    assert told == pytest.approx(100.0 / interval, rel=0.06)


class Ride:
    """A part of a job, as the engine names it."""


def told(reports: Reports, rides: list[Ride], seconds: float, calls_a_second: int = 50) -> int:
    """Previews of rides that advance together and want one at every call."""
    calls = round(seconds * calls_a_second)
    return sum(
        reports.wants_preview(call, ride, call / calls_a_second, parts=len(rides))
        for call in range(1, calls + 1)
        for ride in rides
    )


@pytest.mark.parametrize("parts", [1, 4, 16])
def test_previews_share_a_rate_however_many_ask(parts: int) -> None:
    asked = GenerateParameters(model="m", stream=Stream(every=1))
    rides = [Ride() for _ in range(parts)]
    whole = told(Reports(SPEC, asked, preview_rate=8.0), rides, seconds=100)
    assert whole == pytest.approx(800 + parts * PREVIEWS_AT_ONCE, rel=0.03)


def test_a_short_job_shows_all_its_previews_and_no_part_starves_another() -> None:
    asked = GenerateParameters(model="m", stream=Stream(every=1))
    reports, rides = Reports(SPEC, asked, preview_rate=0.01), [Ride(), Ride()]
    assert told(reports, rides, seconds=PREVIEWS_AT_ONCE / 50) == 2 * PREVIEWS_AT_ONCE
    assert told(reports, rides, seconds=1) == 0
