from collections.abc import Iterator

import pytest
import torch

from worker import threads
from worker.threads import SharedCores


@pytest.fixture
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A machine of so many cores."""
    monkeypatch.setattr(threads, "CORES", request.param)
    before = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("cores", [4, 5, 7], indirect=True)
def test_a_process_has_the_cores_that_no_other_needs_and_none_is_left_over(cores: int) -> None:
    busy = bytearray(3)
    processes = [SharedCores(busy, place) for place in range(3)]
    for number in range(1, 4):
        processes[number - 1].begin()
        found = []
        for process in processes[:number]:
            process.begin()
            found.append(torch.get_num_threads())
        assert sum(found) == cores
        assert max(found) - min(found) <= 1
    for process in processes[1:]:
        process.end()
    processes[0].begin()
    assert torch.get_num_threads() == cores
    assert processes[0].share == cores // 3
    assert processes[0].shares == cores / (cores // 3)


@pytest.mark.parametrize("cores", [4], indirect=True)
def test_one_process_alone_has_all(cores: int) -> None:
    alone = SharedCores()
    assert alone.share == cores
    alone.begin()
    assert torch.get_num_threads() == cores
    assert alone.shares == 1


@pytest.mark.parametrize("cores", [4], indirect=True)
@pytest.mark.usefixtures("cores")
def test_more_processes_than_cores_have_one_each() -> None:
    crowded = SharedCores(bytearray(b"\1" * 7), 6)
    crowded.begin()
    assert crowded.share == torch.get_num_threads() == 1
