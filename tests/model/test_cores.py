import threading

import pytest
import torch

from model.cores import Cores


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("parts", [0, 1, 5, 8])
def test_every_part_is_computed_once_and_in_its_place(count: int, parts: int) -> None:
    assert Cores(count).map(lambda part: 10 * part, range(parts)) == [10 * p for p in range(parts)]


def test_parts_run_side_by_side_no_more_than_the_count_of_now() -> None:
    cores, together, lock = Cores(1, most=4), [0, 0], threading.Lock()
    meeting = threading.Barrier(2, timeout=10)

    def part(_: int) -> None:
        with lock:
            together[0] += 1
            together[1] = max(together)
        meeting.wait()  # breaks unless two are there at once
        with lock:
            together[0] -= 1

    cores.count = 2
    cores.map(part, range(6))
    assert together == [0, 2]


def test_a_part_s_operations_use_as_many_threads_as_they_may_and_the_caller_s_are_its_own() -> None:
    before = torch.get_num_threads()
    for count in (1, 2):
        assert Cores(count).map(lambda _: torch.get_num_threads(), range(4), threads=3) == [3] * 4
    assert torch.get_num_threads() == before


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

    with pytest.raises(RuntimeError, match="not enough memory"):
        Cores(2).map(part, range(2))
    assert done == [1]
