"""The policy alone: no engine, no device, no clock; a call lasts what its cost says."""

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.jobs.parameters import Priority
from worker.scheduler import SHORT_SHARE, STRETCH, WEIGHTS, Part, Scheduler

CAPACITY = 64


def cost(lane: Hashable, rows: int) -> float:
    """2.4 ms a call and 0.2 ms a row; eight times that in the lane "likelihood"."""
    return (0.0024 + 0.0002 * rows) * (8.0 if lane == "likelihood" else 1.0)


def flat(lane: Hashable, rows: int) -> float:
    """A device on which further rows cost nothing."""
    return 0.005


def scheduler(capacity: int = CAPACITY, **constants: object) -> Scheduler:
    return Scheduler(cost, lambda lane: capacity, **constants)  # type: ignore[arg-type]


def part(
    lane: Hashable = "plain",
    rows: int = 16,
    calls_left: float = 100.0,
    arrived: float = 0.0,
    priority: Priority = "interactive",
) -> Part:
    return Part(lane=lane, priority=priority, rows=rows, calls_left=calls_left, arrived=arrived)


def rows_of(call: list[Part]) -> int:
    return sum(each.rows for each in call)


def seconds_by(
    key: Callable[[Part], Hashable], chooses: Scheduler, calls: int = 2000
) -> dict[Hashable, float]:
    """Shares of the device's time, where no call mixes what the key tells apart."""
    spent: dict[Hashable, float] = defaultdict(float)
    for _ in range(calls):
        call = chooses.choose()
        (of,) = {key(each) for each in call}
        spent[of] += cost(call[0].lane, rows_of(call))
    return {of: seconds / sum(spent.values()) for of, seconds in spent.items()}


def test_nothing_waiting_is_no_call() -> None:
    assert scheduler().choose() == []


# --- shares of time ---------------------------------------------------------------------------


def test_classes_share_the_time_by_their_weights_however_many_rows_they_have() -> None:
    chooses = scheduler()
    chooses.add(part(rows=1))
    for _ in range(16):
        chooses.add(part(priority="batch"))
    shares = seconds_by(lambda each: each.priority, chooses)
    assert shares["interactive"] == pytest.approx(WEIGHTS["interactive"] / 4.0, abs=0.01)


def test_full_lanes_share_the_time_whatever_their_calls_cost() -> None:
    chooses = scheduler()
    for lane in ("plain", "likelihood"):
        for _ in range(8):
            chooses.add(part(lane=lane))
    shares = seconds_by(lambda each: each.lane, chooses)
    assert shares["likelihood"] == pytest.approx(0.5, abs=0.01)


def test_a_lone_row_takes_turns_with_another_model_s_full_calls() -> None:
    chooses = scheduler()
    chooses.add(part(lane="one", rows=1))
    for _ in range(4):
        chooses.add(part(lane="many"))
    turns = Counter(chooses.choose()[0].lane for _ in range(1000))
    assert turns["one"] == pytest.approx(500, abs=10)


def test_a_lane_with_three_times_the_rows_gets_three_times_the_time() -> None:
    chooses = scheduler()
    for lane, parts in (("A", 12), ("B", 4)):
        for _ in range(parts):
            chooses.add(part(lane=lane))
    shares = seconds_by(lambda each: each.lane, chooses)
    assert shares["A"] == pytest.approx(0.75, abs=0.01)


def test_more_lanes_in_a_class_do_not_enlarge_its_share() -> None:
    chooses = scheduler()
    for _ in range(4):
        chooses.add(part(lane="bulk", priority="batch"))
        for lane in ("A", "B", "C"):
            chooses.add(part(lane=lane))
    shares = seconds_by(lambda each: each.priority, chooses)
    assert shares["batch"] == pytest.approx(0.25, abs=0.01)


def test_an_idle_class_saves_no_time_for_later() -> None:
    chooses = scheduler()
    chooses.add(part(lane="bulk", priority="batch", rows=64))
    for _ in range(1000):
        chooses.choose()
    chooses.add(part(rows=64))
    first = [chooses.choose()[0].priority for _ in range(40)]
    assert first[0] == "interactive"
    assert first.count("batch") == pytest.approx(10, abs=1)


def test_leaving_and_coming_back_earns_nothing() -> None:
    chooses = scheduler()
    chooses.add(part(lane="bulk", priority="batch", rows=64))
    turns: Counter[str] = Counter()
    for _ in range(400):
        single = part(rows=64)
        chooses.add(single)
        (chosen,) = chooses.choose()
        turns[chosen.priority] += 1
        chooses.remove(single)
    assert turns["batch"] == pytest.approx(100, abs=2)


def test_a_class_that_is_away_while_others_run_is_still_charged_for_its_last_call() -> None:
    """The batch class leaves after every call and comes back one call of the others later."""
    chooses = scheduler(weights={"interactive": 3.0, "batch": 1.0})
    chooses.add(part(rows=64))
    turns: Counter[str] = Counter()
    bulk = part(rows=64, priority="batch", arrived=1.0)
    chooses.add(bulk)
    for _ in range(1000):
        (chosen,) = chooses.choose()
        turns[chosen.priority] += 1
        if chosen is bulk:
            chooses.remove(bulk)
            turns[chooses.choose()[0].priority] += 1
            chooses.add(bulk)
    assert turns["batch"] / turns.total() == pytest.approx(0.25, abs=0.01)


# --- one call ---------------------------------------------------------------------------------


def test_a_call_never_exceeds_the_capacity() -> None:
    chooses = scheduler(capacity=40)
    for size in (16, 16, 16, 8, 5, 3):
        chooses.add(part(rows=size))
    for _ in range(50):
        assert 0 < rows_of(chooses.choose()) <= 40


def test_a_part_larger_than_the_capacity_goes_alone_and_the_others_still_run() -> None:
    chooses = scheduler(capacity=8)
    large, small = part(rows=16, arrived=1.0), part(rows=4, arrived=0.0, calls_left=500)
    chooses.add(large)
    chooses.add(small)
    calls = [chooses.choose() for _ in range(20)]
    assert all(call in ([large], [small]) for call in calls)
    assert [large] in calls[:3]
    assert [small] in calls[:3]


def test_a_part_that_shrank_makes_room() -> None:
    chooses = scheduler(capacity=16)
    first, second = part(rows=16), part(rows=8, arrived=1.0, calls_left=200)
    chooses.add(first)
    chooses.add(second)
    assert chooses.choose() == [first]
    first.rows = 8
    assert set(chooses.choose()) == {first, second}


def test_an_interactive_row_does_not_ride_in_a_full_batch_call() -> None:
    chooses = scheduler()
    single = part(rows=1)
    chooses.add(single)
    for _ in range(8):
        chooses.add(part(rows=16, priority="batch"))
    calls = [chooses.choose() for _ in range(200)]
    assert all(call == [single] for call in calls if single in call)
    assert all(rows_of(call) == CAPACITY for call in calls if single not in call)


def test_batch_rows_fill_the_room_that_costs_little() -> None:
    chooses = scheduler()
    chooses.add(part(rows=16))
    chooses.add(part(rows=16, arrived=1.0))
    chooses.add(part(rows=16, arrived=2.0))
    for _ in range(8):
        chooses.add(part(rows=4, priority="batch"))
    call = chooses.choose()
    own = rows_of([each for each in call if each.priority == "interactive"])
    assert own == 48
    assert 48 < rows_of(call) <= CAPACITY
    assert cost("plain", rows_of(call)) <= (1.0 + STRETCH) * cost("plain", own)


def test_where_rows_cost_nothing_classes_share_every_call() -> None:
    chooses = Scheduler(flat, lambda lane: CAPACITY)
    both = {part(rows=1), part(rows=16, priority="batch")}
    for each in both:
        chooses.add(each)
    for _ in range(20):
        assert set(chooses.choose()) == both


def test_riders_pay_for_what_they_add() -> None:
    chooses = scheduler(stretch=10.0)
    chooses.add(part(rows=1))
    for _ in range(4):
        chooses.add(part(rows=15, priority="batch"))
    lone, full = cost("plain", 1), cost("plain", 61)
    calls = Counter(rows_of(chooses.choose()) for _ in range(1000))
    assert set(calls) == {1, 61}
    batch = calls[61] * (full - lone)
    assert batch / (batch + calls.total() * lone) == pytest.approx(0.25, abs=0.01)


# --- order within a queue ---------------------------------------------------------------------


def finish(chooses: Scheduler, parts: list[Part]) -> dict[Part, int]:
    """Run the parts to their ends; the call in which each ended."""
    ended: dict[Part, int] = {}
    for each in parts:
        chooses.add(each)
    call = 0
    while len(ended) < len(parts):
        call += 1
        for each in chooses.choose():
            each.calls_left -= 1
            if each.calls_left == 0:
                chooses.remove(each)
                ended[each] = call
    return ended


def test_short_work_overtakes_long_work_that_came_earlier() -> None:
    ends = {}
    for share in (0.0, SHORT_SHARE):
        long = [part(calls_left=200, arrived=float(n)) for n in range(12)]
        short = part(rows=1, calls_left=20, arrived=100.0)
        ends[share] = finish(scheduler(short_share=share), [*long, short])[short]
    assert ends[0.0] > 400
    assert ends[SHORT_SHARE] == 20


@pytest.mark.parametrize("short_share", [0.0, 0.25, 0.5])
def test_the_parts_nearly_done_take_their_share_of_the_rows_and_no_more(
    short_share: float,
) -> None:
    chooses = scheduler(short_share=short_share)
    old = [part(calls_left=1000, arrived=0.0) for _ in range(4)]
    young = [part(calls_left=10, arrived=1.0) for _ in range(4)]
    for each in old + young:
        chooses.add(each)
    ran = Counter(each for _ in range(400) for each in chooses.choose())
    taken = sum(ran[each] for each in young) / ran.total()
    assert taken == pytest.approx(short_share, abs=0.02)


def test_a_stream_of_small_short_parts_never_keeps_the_oldest_out_of_two_calls() -> None:
    chooses = scheduler(capacity=16, short_share=0.9)
    oldest = part(rows=16, calls_left=1e6)
    chooses.add(oldest)
    out = 0
    for tick in range(300):
        chooses.add(part(rows=3, calls_left=1.0, arrived=1.0 + tick))
        call = chooses.choose()
        out = 0 if oldest in call else out + 1
        assert out < 2
        for each in call:
            if each is not oldest:
                chooses.remove(each)


def test_equally_old_parts_run_one_after_the_other() -> None:
    parts = [part(calls_left=50) for _ in range(16)]
    ended = finish(scheduler(), parts)
    assert sorted(ended.values()) == [50] * 4 + [100] * 4 + [150] * 4 + [200] * 4


# --- nobody starves ---------------------------------------------------------------------------


def test_a_waiting_queue_runs_within_the_stated_bound() -> None:
    """Every queue full, so that weights stand still and the bound can be computed."""
    chooses = scheduler()
    lanes = {"A": 3.0 / 2, "likelihood": 3.0 / 2}
    queues: dict[tuple[Hashable, Priority], float] = {
        **{(lane, "interactive"): weight for lane, weight in lanes.items()},
        ("bulk", "batch"): 1.0,
    }
    for lane, priority in queues:
        for _ in range(8):
            chooses.add(part(lane=lane, priority=priority))
    waited = dict.fromkeys(queues, 0.0)
    longest = dict.fromkeys(queues, 0.0)
    for _ in range(3000):
        call = chooses.choose()
        ran, took = (call[0].lane, call[0].priority), cost(call[0].lane, rows_of(call))
        for queue in queues:
            waited[queue] = 0.0 if queue == ran else waited[queue] + took
            longest[queue] = max(longest[queue], waited[queue])
    for queue, weight in queues.items():
        own = cost(queue[0], CAPACITY)
        bound = sum(
            others * own / weight + cost(other[0], CAPACITY)
            for other, others in queues.items()
            if other != queue
        )
        assert 0.0 < longest[queue] <= bound


def test_with_riders_too_a_waiting_queue_runs_within_the_stated_bound() -> None:
    chooses = scheduler()
    queues: list[tuple[str, Priority]] = [
        (lane, priority) for lane in "AB" for priority in ("interactive", "batch")
    ]
    for lane, priority in queues:
        for size in (16, 16, 16) if priority == "interactive" else (16, 16, 16, 16, 1, 1, 1, 1):
            chooses.add(part(lane=lane, priority=priority, rows=size))
    c, least = cost("A", CAPACITY), WEIGHTS["batch"] / 2
    bound = sum(WEIGHTS.values()) * 2 * c / least + len(queues) * c
    waited, longest = dict.fromkeys(queues, 0.0), dict.fromkeys(queues, 0.0)
    for _ in range(5000):
        call = chooses.choose()
        ran = {(each.lane, each.priority) for each in call}
        for queue in queues:
            waited[queue] = 0.0 if queue in ran else waited[queue] + cost("A", rows_of(call))
            longest[queue] = max(longest[queue], waited[queue])
    assert 0.0 < max(longest.values()) <= bound


piece = st.builds(
    part,
    lane=st.sampled_from(["A", "B", "likelihood"]),
    rows=st.integers(1, 16),
    calls_left=st.integers(1, 12).map(float),
    arrived=st.floats(0.0, 10.0),
    priority=st.sampled_from(["interactive", "batch"]),
)


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(piece, min_size=1, max_size=30), capacity=st.integers(1, 64))
def test_whatever_waits_every_part_ends_and_every_call_is_of_one_lane(
    parts: list[Part], capacity: int
) -> None:
    chooses = scheduler(capacity=capacity)
    left = sum(int(each.calls_left) for each in parts)
    for each in parts:
        chooses.add(each)
    while left:
        call = chooses.choose()
        assert len({each.lane for each in call}) == 1
        assert len(set(call)) == len(call)
        assert rows_of(call) <= capacity or len(call) == 1
        left -= len(call)
        for each in call:
            each.calls_left -= 1
            if each.calls_left == 0:
                chooses.remove(each)
    assert chooses.choose() == []


# --- removal, models, determinism -----------------------------------------------------------


def test_a_cancelled_part_is_not_in_the_next_call() -> None:
    chooses = scheduler()
    gone, stays = part(), part(arrived=1.0)
    chooses.add(gone)
    chooses.add(stays)
    assert gone in chooses.choose()
    chooses.remove(gone)
    assert chooses.choose() == [stays]


def test_removing_what_does_not_wait_is_refused() -> None:
    chooses = scheduler()
    other, single = part(), part()
    chooses.add(other)
    with pytest.raises(ValueError, match="not waiting"):
        chooses.remove(single)
    chooses.remove(other)
    with pytest.raises(ValueError, match="not waiting"):
        chooses.remove(other)


def test_a_model_that_comes_late_gets_its_half_at_once() -> None:
    chooses = scheduler()
    for _ in range(4):
        chooses.add(part(lane="A"))
    for _ in range(1000):
        chooses.choose()
    for _ in range(4):
        chooses.add(part(lane="B"))
    lanes = [chooses.choose()[0].lane for _ in range(100)]
    assert lanes.count("B") == pytest.approx(50, abs=1)
    assert all(a != b for a, b in pairwise(lanes))


def test_the_same_parts_give_the_same_calls() -> None:
    def calls() -> list[list[int]]:
        chooses = scheduler()
        parts = [
            part(
                lane="AB"[n % 2],
                rows=1 + 5 * n % 16,
                calls_left=float(10 + 7 * n % 23),
                arrived=float(n // 3),
                priority="batch" if n % 5 == 0 else "interactive",
            )
            for n in range(60)
        ]
        for each in parts:
            chooses.add(each)
        return [[parts.index(each) for each in chooses.choose()] for _ in range(200)]

    assert calls() == calls()


def test_importing_the_scheduler_leaves_torch_out() -> None:
    code = "import sys, worker.scheduler; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
