import pytest
import torch

from worker import threads
from worker.threads import SharedCores


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(threads, "CORES", 4)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_process_has_the_cores_that_no_other_needs() -> None:
    busy = bytearray(3)
    one, other, third = (SharedCores(busy, place) for place in range(3))
    assert one.share == 1
    one.begin()
    assert one.count == torch.get_num_threads() == 4
    other.begin()
    one.begin()
    assert one.count == other.count == 2
    third.begin()
    one.begin()
    assert one.count == torch.get_num_threads() == 1
    other.end()
    third.end()
    one.begin()
    assert one.count == 4


def test_with_nothing_to_do_it_is_as_if_all_were_busy() -> None:
    """A model is measured then, for when they are."""
    cores = SharedCores(bytearray(2), 1)
    cores.begin()
    assert cores.count == 4
    cores.end()
    assert cores.count == cores.share == 2


def test_one_process_alone_has_all() -> None:
    cores = SharedCores()
    assert cores.share == cores.count == 4
    cores.begin()
    assert cores.count == 4


def test_more_processes_than_cores_have_one_each() -> None:
    busy = bytearray(b"\1" * 7)
    cores = SharedCores(busy, 3)
    cores.begin()
    assert cores.share == cores.count == 1
