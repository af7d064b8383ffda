import dataclasses
import hashlib
import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from model.checkpoint import Checkpoint, load
from model.cores import exactly
from model.denoiser import Denoiser
from worker import knee
from worker.knee import LIMIT, SIZES, WITHIN, Curve, Curves, measure
from worker.shelf import SHIPPED


class Device:
    """A pretended device: `call` seconds up to `saturation` rows, proportional beyond."""

    def __init__(self, *, saturation: int, call: float = 0.001) -> None:
        self.saturation, self.call = saturation, call
        self.calls: list[int] = []

    def truth(self, rows: int) -> float:
        return self.call * max(1.0, rows / self.saturation)

    def __call__(self, rows: int) -> float:
        self.calls.append(rows)
        return self.truth(rows)


@pytest.mark.parametrize("saturation", SIZES)
def test_the_knee_is_where_the_device_saturates(saturation: int) -> None:
    device = Device(saturation=saturation)
    curve = measure(device)
    assert curve.knee == saturation
    assert curve.seconds == pytest.approx([device.truth(rows) for rows in curve.rows])


def test_a_busy_spell_in_the_middle_does_not_move_the_knee() -> None:
    device, calls = Device(saturation=64), itertools.count()

    def disturbed(rows: int) -> float:
        return device(rows) * (4.0 if 4 <= next(calls) < 150 else 1.0)

    assert measure(disturbed).knee == 64


def test_a_machine_that_is_never_idle_does_not_move_the_knee() -> None:
    """Something else takes the device for 4 ms of every 10 ms: short calls may miss it."""
    device, clock = Device(saturation=64, call=0.008), 0.0

    def disturbed(rows: int) -> float:
        nonlocal clock
        start, left = clock, device(rows)
        while left > 1e-9:
            phase = clock % 0.01
            clock += max(0.0, 0.01 - phase) if phase > 0.006 - 1e-9 else 0.0
            step = min(left, 0.006 - clock % 0.01 if clock % 0.01 < 0.006 else 0.006)
            clock, left = clock + step, left - step
        return clock - start

    assert measure(disturbed).knee == 64


def test_a_size_that_is_slow_does_not_end_the_measuring() -> None:
    device = Device(saturation=64)
    curve = measure(lambda rows: device(rows) * (5.0 if rows in (4, 16) else 1.0))
    assert curve.knee == 64


def test_gains_of_less_than_five_percent_do_not_move_the_knee() -> None:
    curve = measure(lambda rows: 0.001 * rows * (1.0 - 0.9 * WITHIN) ** (rows > 4))
    assert curve.knee == 1


def test_gains_that_add_up_to_five_percent_move_it() -> None:
    costs = {1: 1.0, 2: 0.97, 4: 0.94} | dict.fromkeys((8, 16, 32, 64, 128, 256), 0.93)
    curve = measure(lambda rows: 0.001 * rows * costs[rows])
    assert curve.knee == 2  # 0.93 is within 5 % of 0.97, not of 1


def test_a_slow_network_is_measured_for_a_limited_time() -> None:
    device = Device(saturation=4, call=0.1)
    spent = 0.0

    def seconds_of(rows: int) -> float:
        nonlocal spent
        spent += device(rows)
        return device.truth(rows)

    curve = measure(seconds_of)
    assert curve.rows == (1, 2, 4, 8, 16)  # the last one takes 0.4 s
    assert spent < 2 * LIMIT


def test_calls_of_many_seconds_are_made_as_few_times_as_can_be() -> None:
    device = Device(saturation=1, call=5.0)
    assert measure(device).rows == (1,)
    assert device.calls == [1]


def test_warming_up_is_not_part_of_the_curve() -> None:
    device = Device(saturation=32)
    seen: set[int] = set()

    def seconds_of(rows: int) -> float:
        warm = rows in seen
        seen.add(rows)
        return device(rows) * (1.0 if warm else 50.0)

    assert measure(seconds_of) == measure(device)


def test_a_hiccup_now_and_then_does_not_move_the_curve() -> None:
    device = Device(saturation=32)

    def seconds_of(rows: int) -> float:
        return device(rows) * (20.0 if len(device.calls) % 100 == 0 else 1.0)

    assert measure(seconds_of).seconds == pytest.approx(measure(device).seconds)


def test_a_device_without_memory_for_a_size_is_measured_up_to_it() -> None:
    device = Device(saturation=256)

    def seconds_of(rows: int) -> float:
        if rows > 32:
            raise torch.OutOfMemoryError("full")
        return device(rows)

    def bucket(products: int) -> float:
        if products:
            raise torch.OutOfMemoryError("full")
        return 0.003

    curve = measure(seconds_of, bucket)
    assert curve.rows[-1] == curve.knee == 32
    assert curve.bucket_seconds == 0.003
    assert curve.gradient_seconds is None


def test_a_network_that_fails_at_a_single_row_is_an_error() -> None:
    def seconds_of(rows: int) -> float:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        measure(seconds_of)


def test_a_call_between_two_sizes_costs_what_lies_between() -> None:
    curve = Curve((1, 4, 16), (1.0, 1.3, 2.5))
    assert [curve.seconds_for(rows) for rows in (1, 4, 16)] == pytest.approx([1.0, 1.3, 2.5])
    assert curve.seconds_for(3) == pytest.approx(1.2)
    assert curve.seconds_for(10) == pytest.approx(1.9)


def test_a_call_past_the_last_size_costs_in_proportion() -> None:
    assert Curve((1, 16), (1.0, 2.5)).seconds_for(64) == pytest.approx(10.0)


CURVE = Curve((1, 2, 4), (0.5, 0.25 / 3, 1e-4), 0.3, 2.5)


@pytest.mark.parametrize("curve", [CURVE, Curve((1,), (1.0,)), Curve((1,), (1.0,), 2.0)])
def test_a_curve_survives_json(curve: Curve) -> None:
    assert Curve.from_json(json.loads(json.dumps(curve.to_json()))) == curve


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [1, 2]},
        {"rows": []},
        {"rows": [2, 1, 4]},
        {"seconds": [0.5, 0.0, 1.0]},
        {"seconds": [0.5, float("nan"), 1.0]},
        {"seconds": None},
        {"gradient_seconds": -1.0},
        {"bucket_seconds": 0.0},
    ],
)
def test_what_cannot_have_been_measured_is_no_curve(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a curve"):
        Curve.from_json(CURVE.to_json() | change)


# Kept curves


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load(SHIPPED / "digits.safetensors")


@pytest.fixture(scope="module")
def denoiser(checkpoint: Checkpoint) -> Denoiser:
    return checkpoint.denoiser()


class Counted:
    """Measures nothing, answers `curve`, and counts how often it was asked."""

    def __init__(self, curve: Curve = CURVE) -> None:
        self.curve, self.times = curve, 0

    def __call__(self, checkpoint: Checkpoint, denoiser: Denoiser, rounds: int) -> Curve:
        self.times += 1
        return self.curve


def asked(
    folder: Path | None, checkpoint: Checkpoint, denoiser: Denoiser, measure: Counted
) -> Curve:
    """The curve of a process that has just started, on an idle device."""
    return Curves(folder, measure).of(checkpoint, denoiser, lambda: True)


@pytest.fixture
def free_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread waits for a core, whatever else the machine does."""
    monkeypatch.setattr(knee, "_waited", lambda: 0.0)


@pytest.mark.usefixtures("free_cores")
def test_a_curve_is_measured_once(tmp_path: Path, checkpoint: Checkpoint, denoiser: Denoiser):
    measure = Counted()
    assert asked(tmp_path, checkpoint, denoiser, measure) == CURVE
    assert asked(tmp_path, checkpoint, denoiser, measure) == CURVE
    assert measure.times == 1


@pytest.fixture
def other_threads() -> Iterator[Callable[[], None]]:
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(before + 1)
    torch.set_num_threads(before)


def test_other_circumstances_are_measured_again(
    tmp_path: Path,
    checkpoint: Checkpoint,
    denoiser: Denoiser,
    other_threads: Callable[[], None],
) -> None:
    measure = Counted()
    asked(tmp_path, checkpoint, denoiser, measure)
    other_digest = dataclasses.replace(checkpoint, digest="sha256:0")
    other_dtype = dataclasses.replace(denoiser, dtype=torch.bfloat16)
    asked(tmp_path, other_digest, denoiser, measure)
    asked(tmp_path, checkpoint, other_dtype, measure)
    other_threads()
    asked(tmp_path, checkpoint, denoiser, measure)
    assert measure.times == 4


@pytest.mark.usefixtures("free_cores")
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 1, "curve": 2}', "\x00"])
def test_a_broken_file_is_measured_again_and_replaced(
    content: str,
    tmp_path: Path,
    checkpoint: Checkpoint,
    denoiser: Denoiser,
    caplog: pytest.LogCaptureFixture,
) -> None:
    measure = Counted()
    asked(tmp_path, checkpoint, denoiser, measure)
    (kept,) = (tmp_path / "curves").iterdir()
    kept.write_text(content)
    assert asked(tmp_path, checkpoint, denoiser, measure) == CURVE
    assert kept.name in caplog.text
    asked(tmp_path, checkpoint, denoiser, measure)
    assert measure.times == 2


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, checkpoint: Checkpoint, denoiser: Denoiser
) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    assert asked(tmp_path / "file", checkpoint, denoiser, Counted()) == CURVE
    assert asked(None, checkpoint, denoiser, Counted()) == CURVE


@pytest.mark.usefixtures("free_cores")
def test_what_was_measured_while_others_ran_is_not_kept(
    tmp_path: Path, checkpoint: Checkpoint, denoiser: Denoiser
) -> None:
    measure = Counted()
    curves = Curves(tmp_path, measure)
    curves.of(checkpoint, denoiser, lambda: False)
    answers = iter([True, False])  # a job begins meanwhile
    curves.of(checkpoint, denoiser, lambda: next(answers))
    assert measure.times == 2
    for _ in range(2):
        curves.of(checkpoint, denoiser, lambda: True)
    assert measure.times == 3


def test_the_cache_folder_follows_the_xdg_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert knee.default_cache() == tmp_path / "cache" / "fokker"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert knee.default_cache() == tmp_path / "home" / ".cache" / "fokker"


# The machine itself


def test_the_shipped_model_has_a_sane_curve(checkpoint: Checkpoint, denoiser: Denoiser) -> None:
    curve = knee.measure_checkpoint(checkpoint, denoiser, rounds=1)
    assert curve.rows == SIZES[: len(curve.rows)]
    assert curve.knee > 1
    at_knee = curve.seconds_for(curve.knee) / curve.knee
    assert at_knee < curve.seconds_for(1)
    # Eight products cost eight to eleven forwards (DESIGN §3); a busy machine may blur that.
    assert curve.gradient_seconds is not None
    assert curve.bucket_seconds is not None
    assert 2.0 < curve.gradient_seconds / curve.bucket_seconds < 50.0


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux's schedstat")
def test_what_was_measured_on_a_crowded_machine_is_not_kept(
    tmp_path: Path, checkpoint: Checkpoint, denoiser: Denoiser
) -> None:
    def crowded(checkpoint: Checkpoint, denoiser: Denoiser, rounds: int) -> Curve:
        """Twice as many busy threads as cores: each waits half of the time."""
        until = time.monotonic() + 0.3

        def work() -> None:
            while time.monotonic() < until:
                hashlib.sha256(bytes(1 << 20))  # without the interpreter's lock
            ended.wait()

        threads = [threading.Thread(target=work) for _ in range(2 * (os.cpu_count() or 1))]
        for thread in threads:
            thread.start()
        time.sleep(0.4)
        running.extend(threads)
        return CURVE

    running: list[threading.Thread] = []
    ended = threading.Event()
    try:
        Curves(tmp_path, crowded).of(checkpoint, denoiser, lambda: True)
    finally:
        ended.set()
        for thread in running:
            thread.join()
    assert not (tmp_path / "curves").exists()


def test_a_network_is_warm_for_all_rows_up_to_the_knee(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knee, "WARM", math.inf)
    checkpoint = load(SHIPPED / "digits.safetensors")
    denoiser = checkpoint.denoiser()
    seen: list[int] = []
    checkpoint.network.register_forward_pre_hook(lambda _, asked: seen.append(len(asked[0])))
    with exactly(1), torch.no_grad():
        knee.warm_up(checkpoint, denoiser, Curve((1, 20), (1.0, 2.0)))
        warm = list(seen)
        for rows in range(1, 21):
            denoiser(knee._query((1, 8, 8), rows))
    assert warm == [*range(1, 17), 18, 20]
    assert set(seen) == set(warm)


def test_warming_a_slow_network_ends_before_the_knee(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load(SHIPPED / "digits.safetensors")
    denoiser = checkpoint.denoiser()
    seen: list[int] = []
    checkpoint.network.register_forward_pre_hook(lambda _, asked: seen.append(len(asked[0])))
    monkeypatch.setattr(knee, "WARM", 0.0)
    with exactly(1):
        knee.warm_up(checkpoint, denoiser, Curve((1, 20), (1.0, 2.0)))
    assert seen == [1]
