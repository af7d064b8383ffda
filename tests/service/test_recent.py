"""What was found a moment ago is found again without a look, unless it was nothing."""

import pytest

from service.jobs.recent import Recent

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("seconds", "looks"), [(60.0, 1), (0.0, 3)])
async def test_it_looks_again_when_time_is_up(seconds: float, looks: int):
    found: list[list[int]] = []

    async def find() -> list[int]:
        found.append([1])
        return found[-1]

    recent = Recent(find, seconds)
    for _ in range(3):
        assert await recent() == [1]
    assert len(found) == looks
    assert await recent.now() == [1]
    assert len(found) == looks + 1


async def test_nothing_is_looked_for_every_time():
    answers: list[list[int]] = [[], [], [5]]

    async def find() -> list[int]:
        return answers.pop(0)

    recent = Recent(find, 60)
    assert [await recent() for _ in range(5)] == [[], [], [5], [5], [5]]
