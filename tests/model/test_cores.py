import os
import threading
from collections.abc import Iterator

import pytest
import torch

from model.cores import exactly, side_by_side


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("parts", [0, 1, 5, 8])
def test_every_part_is_computed_once_and_in_its_place(cores: int, parts: int) -> None:
    with exactly(cores):
        assert side_by_side(lambda part: 10 * part, range(parts)) == [10 * p for p in range(parts)]


def test_parts_run_side_by_side_and_no_more_than_there_are_cores() -> None:
    together, lock = [0, 0], threading.Lock()
    meeting = threading.Barrier(2, timeout=10)

    def part(_: int) -> None:
        with lock:
            together[0] += 1
            together[1] = max(together)
        meeting.wait()  # breaks unless two are there at once
        with lock:
            together[0] -= 1

    with exactly(2):
        side_by_side(part, range(6))
    assert together == [0, 2]


@pytest.mark.parametrize("cores", [1, 2])
def test_a_part_s_operations_use_the_threads_that_it_may_and_the_caller_keeps_its_own(
    cores: int,
) -> None:
    with exactly(cores):
        found = side_by_side(lambda _: torch.get_num_threads(), range(4), threads=3)
        assert torch.get_num_threads() == cores
    assert found == [3] * 4


def test_what_fails_in_a_part_is_raised_when_nothing_goes_on_any_more() -> None:
    begun, may_end, done = threading.Event(), threading.Event(), []

    def part(number: int) -> None:
        if number == 0:
            assert begun.wait(10)
            may_end.set()
            raise RuntimeError("not enough memory")
        begun.set()
        assert may_end.wait(10)
        done.append(number)

    with exactly(2), pytest.raises(RuntimeError, match="not enough memory"):
        side_by_side(part, range(2))
    assert done == [1]


@pytest.fixture
def used() -> Iterator[None]:
    """The threads are there already."""
    with exactly(2):
        side_by_side(lambda part: part, range(2))
        yield


@pytest.mark.usefixtures("used")
def test_a_forked_process_has_threads_of_its_own() -> None:
    child = os.fork()
    if child == 0:
        os._exit(int(side_by_side(lambda part: part, range(2)) != [0, 1]))
    ended = threading.Timer(10, os.kill, (child, 9))
    ended.start()
    _, status = os.waitpid(child, 0)
    ended.cancel()
    assert os.waitstatus_to_exitcode(status) == 0
