import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks.network import inputs
from model.cores import PIECE, SharedAmongCores, exactly, rounded, side_by_side
from model.inference import prepare
from tests.model.networks import SMALL, Recorder, assert_same_up_to_rounding, random_network


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


def test_threads_that_were_started_before_are_those_that_compute() -> None:
    script = """
import os
import threading
import torch
from model.cores import side_by_side, start_threads
start_threads(1000)
count = os.cpu_count()
before = {thread.name for thread in threading.enumerate()}
torch.set_num_threads(count)
meet = threading.Barrier(count)
def part(_):
    meet.wait(10)
    return threading.current_thread().name
found = side_by_side(part, range(count)) if count > 1 else []
assert len(before) == 1 + count and set(found) <= before, found
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


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


def test_a_core_computes_few_different_numbers_of_rows_and_few_in_vain() -> None:
    found = [rounded(rows) for rows in range(1, 257)]
    assert found[:16] == list(range(1, 17))
    assert all(rows <= size < 1.125 * rows for rows, size in enumerate(found, start=1))
    assert len(set(found)) == 16 + 4 * 8


@pytest.mark.parametrize("rows", [1, 11, 35, 64])
def test_cores_that_share_the_rows_give_the_network_s_answer_in_order(rows: int) -> None:
    """In the first call, too, in which each may find that nothing is prepared yet."""
    asked = inputs(SMALL, rows, 8)
    shared = SharedAmongCores(prepare(random_network()))
    with torch.no_grad(), exactly(2):
        for _ in range(2):
            assert_same_up_to_rounding(shared(*asked), random_network()(*asked))


def test_cores_share_no_batch_that_is_too_small_for_them_nor_one_with_gradients() -> None:
    recorder = Recorder()
    shared = SharedAmongCores(recorder)
    small, large = inputs(SMALL, 21, 8), inputs(SMALL, 63, 8)
    with exactly(2):
        with torch.no_grad():
            shared(*small)
            shared(*large)
        shared(*large)
    assert recorder.sizes[0] == 22  # one is padded
    assert recorder.sizes[1:] == [32, 32, 63]  # 31 are padded


def test_cores_share_batches_from_as_many_values_on_as_they_are_told() -> None:
    recorder = Recorder()
    asked = inputs(SMALL, 12, 8)
    with torch.no_grad(), exactly(2):
        SharedAmongCores(recorder)(*asked)
        SharedAmongCores(recorder, PIECE)(*asked)
        SharedAmongCores(recorder, PIECE)(*inputs(SMALL, 2, 8))
    assert recorder.sizes == [12, 6, 6, 2]


def test_what_fails_on_one_core_is_raised_when_the_others_are_done() -> None:
    done = []

    class Half(nn.Module):
        def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
            if float(log_snr[0]) < 0:
                raise RuntimeError("not enough memory")
            done.append(len(u))
            return u

    with torch.no_grad(), exactly(2), pytest.raises(RuntimeError, match="not enough memory"):
        SharedAmongCores(Half())(*inputs(SMALL, 64, 8))
    assert done == [32]
