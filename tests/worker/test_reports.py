"""How often a job tells where it is."""

import pytest

from model.data import DataSpec
from service.jobs.parameters import GenerateParameters
from worker.reports import STEP_INTERVAL, STEPS_A_SECOND, Reports


@pytest.mark.parametrize(("jobs", "interval"), [(1, STEP_INTERVAL), (64, 64 / STEPS_A_SECOND)])
def test_all_jobs_share_a_bound_of_steps(jobs: int, interval: float) -> None:
    reports = Reports(DataSpec(shape=(1, 2, 2), levels=256), GenerateParameters(model="m"))
    ticks = [0.05 * n for n in range(1, 2001)]  # 100 seconds
    told = sum(reports.wants_step(now, jobs) for now in ticks)
    assert told == pytest.approx(100.0 / interval, rel=0.06)
