import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import worker.shelf
from model import checkpoint as checkpoints
from model.checkpoint import Checkpoint, CheckpointError, Description, replaced_path
from model.compiled import RANGES
from model.data import DataSpec
from model.denoiser import Denoiser
from model.process import VPLinear
from model.unet import UNet, UNetConfig
from tests.laws.mixture import mixture
from training.publish import publish
from worker.knee import ROUNDS, Curve, Curves
from worker.metrics import Metrics
from worker.shelf import SHIPPED, ModelError, Shelf, default_budget

CPU = torch.device("cpu")
SHAPE = (1, 2, 2)
SIZE = 3 * 4 * 8  # bytes: three means of four float64 values
LIMIT = 20.0  # seconds until a load that does not end fails its test
CURVE = Curve((1,), (0.001,))


def save(folder: Path, name: str, *, variance: float, broken: bool = False) -> Path:
    """A checkpoint of `SIZE` bytes of weights; another variance is another digest."""
    network = mixture(components=3, shape=SHAPE, variance=variance)
    if broken:
        network.means[0] = float("nan")
    description = Description(
        architecture=network.config, process=VPLinear(), data=DataSpec(shape=SHAPE, levels=256)
    )
    path = folder / f"{name}.safetensors"
    checkpoints.save(path, description, network.state_dict())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the models a, b and c."""
    for name, variance in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
        save(tmp_path, name, variance=variance)
    return tmp_path


class Measuring:
    """Stands where costs are measured: counts, fails or waits there as a test wants it."""

    def __init__(self, curve: Curve = CURVE) -> None:
        self.curve = curve
        self.digests: list[str] = []
        self.rounds: list[int] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, checkpoint: Checkpoint, denoiser: Denoiser, rounds: int) -> Curve:
        self.digests.append(checkpoint.digest)
        self.rounds.append(rounds)
        self.threads.add(threading.current_thread().name)
        assert self.may_end.wait(LIMIT)
        if self.error is not None:
            raise self.error
        return self.curve


@pytest.fixture
def measuring() -> Measuring:
    return Measuring()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def make(folder: Path, measuring: Measuring, metrics: Metrics) -> Callable[..., Shelf]:
    """`make(models=2)`: a shelf over the folder with memory for so many."""

    def make(models: float = 100) -> Shelf:
        return Shelf(
            folder, CPU, budget=int(models * SIZE), curves=Curves(None, measuring), metrics=metrics
        )

    return make


def digest(shelf: Shelf, name: str) -> str:
    return next(str(card["digest"]) for card in shelf.cards if card["name"] == name)


def loaded(shelf: Shelf) -> list[str]:
    """The names of the models in memory, as the metrics have it, which is what is seen outside."""
    family = next(f for f in shelf._metrics.registry.collect() if f.name == "fokker_model_loaded")
    return sorted(sample.labels["model"] for sample in family.samples if sample.value == 1)


def nobody() -> None:
    """Who need not be told that a model is loaded."""


def settled(shelf: Shelf) -> None:
    """Wait until the loader has nothing left to do."""
    if (loader := shelf._loader) is not None:
        loader.join(LIMIT)
        assert not loader.is_alive()


# The folder


def test_a_broken_checkpoint_is_left_out_and_the_others_are_served(
    folder: Path, make: Callable[..., Shelf], caplog: pytest.LogCaptureFixture
) -> None:
    whole = (folder / "a.safetensors").read_bytes()
    (folder / "b.safetensors").write_bytes(b"not a checkpoint")
    (folder / "c.safetensors").write_bytes(whole[:-1])
    assert [card["name"] for card in make().cards] == ["a"]
    assert "b.safetensors" in caplog.text
    assert "c.safetensors" in caplog.text


def test_what_cannot_be_served_is_told_with_its_reason_until_it_can(
    folder: Path, make: Callable[..., Shelf]
) -> None:
    whole = (folder / "b.safetensors").read_bytes()
    (folder / "b.safetensors").write_bytes(b"not a checkpoint")
    shelf = make()
    save(folder, "c", variance=0.2, broken=True)
    shelf.refresh()
    digest = next(card["digest"] for card in shelf.cards if card["name"] == "c")
    with pytest.raises(ModelError):
        shelf.load(digest)
    shelf.refresh()
    assert shelf.failures.keys() == {"b", "c"}
    assert shelf.failures["b"].startswith("b.safetensors: ")
    assert str(folder) not in shelf.failures["b"]
    (folder / "b.safetensors").write_bytes(whole)
    (folder / "c.safetensors").unlink()
    shelf.refresh()
    assert shelf.failures == {}


def test_weights_that_do_not_fit_their_architecture_are_left_out_unread(
    folder: Path, make: Callable[..., Shelf], caplog: pytest.LogCaptureFixture
) -> None:
    network = mixture(components=3, shape=SHAPE)
    description = Description(
        architecture=network.config, process=VPLinear(), data=DataSpec(shape=SHAPE, levels=256)
    )
    four = {"means": torch.zeros(4, *SHAPE, dtype=torch.float64)}
    checkpoints.save(folder / "a.safetensors", description, four)
    assert [card["name"] for card in make().cards] == ["b", "c"]
    assert "'means'" in caplog.text


def test_the_same_checkpoint_under_two_names_is_served_under_the_first(
    folder: Path, make: Callable[..., Shelf], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    shelf = make()
    assert [card["name"] for card in shelf.cards] == ["a", "c"]
    assert "the same checkpoint as a" in caplog.text
    assert shelf.failures == {"b": "it is the same checkpoint as a, which is served"}
    (folder / "a.safetensors").unlink()
    shelf.refresh()
    assert [card["name"] for card in shelf.cards] == ["b", "c"]
    assert shelf.failures == {}


def test_a_folder_with_nothing_to_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint that can be served"):
        Shelf(tmp_path, CPU)


def test_the_shipped_model_s_card_has_all_that_a_request_is_checked_against() -> None:
    card = next(card for card in Shelf(SHIPPED, CPU).cards if card["name"] == "digits")
    assert card["shape"] == (1, 8, 8)
    assert card["levels"] == 17
    assert len(card["class_names"]) == 10
    assert card["process"]["t_min"] == 1e-3
    loaded = checkpoints.load(SHIPPED / "digits.safetensors")
    assert card["digest"] == loaded.digest
    assert card["parameters"] == loaded.parameters


def test_reading_headers_does_not_load_torch_s_compiler() -> None:
    code = (
        "import sys, torch; from worker.shelf import SHIPPED, Shelf;"
        "Shelf(SHIPPED, torch.device('cpu'));"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_cards_are_there_before_any_model_is_loaded(
    make: Callable[..., Shelf], measuring: Measuring
) -> None:
    shelf = make()
    assert [card["name"] for card in shelf.cards] == ["a", "b", "c"]
    assert shelf.digests == {card["digest"] for card in shelf.cards}
    assert loaded(shelf) == measuring.digests == []


# Loading


def test_a_requested_model_is_loaded_in_the_background_and_then_handed_out(
    make: Callable[..., Shelf], measuring: Measuring, metrics: Metrics
) -> None:
    shelf, ready = make(), threading.Event()
    wanted = digest(shelf, "b")
    assert shelf.request(wanted, ready.set) is None
    assert ready.wait(LIMIT)
    served = shelf.request(wanted, ready.set)
    assert served is not None
    assert (served.name, served.checkpoint.digest, served.curve) == ("b", wanted, CURVE)
    assert measuring.threads == {"loader"}
    assert loaded(shelf) == ["b"]
    assert metrics.registry.get_sample_value("fokker_knee_rows", {"model": "b"}) == CURVE.knee


def test_several_requests_for_a_model_load_it_once_and_all_are_told(
    make: Callable[..., Shelf], measuring: Measuring
) -> None:
    shelf, told = make(), threading.Semaphore(0)
    wanted = digest(shelf, "a")
    measuring.may_end.clear()

    def other() -> None:
        told.release()

    for _ in range(3):
        assert shelf.request(wanted, told.release) is None
    assert shelf.request(wanted, other) is None
    measuring.may_end.set()
    settled(shelf)
    assert shelf.request(wanted, other) is not None
    assert measuring.digests == [wanted]
    # Who asks at every tick with the same function is told once.
    assert told.acquire(blocking=False)
    assert told.acquire(blocking=False)
    assert not told.acquire(blocking=False)


def test_one_model_is_loaded_at_a_time_in_the_order_of_the_requests(
    make: Callable[..., Shelf], measuring: Measuring
) -> None:
    shelf = make()
    wanted = [digest(shelf, name) for name in "bca"]
    measuring.may_end.clear()
    for each in wanted:
        assert shelf.request(each, nobody) is None
    assert measuring.digests in ([], wanted[:1])
    measuring.may_end.set()
    settled(shelf)
    assert measuring.digests == wanted


def test_nobody_waits_while_a_model_is_loaded(
    make: Callable[..., Shelf], measuring: Measuring
) -> None:
    shelf = make()
    first, second = digest(shelf, "a"), digest(shelf, "b")
    served = shelf.load(first)
    measuring.may_end.clear()  # the load of b cannot end before this test lets it
    assert shelf.request(second, nobody) is None
    assert shelf.request(first, nobody) is served
    shelf.pin(first)
    shelf.unpin(first)
    shelf.refresh()
    assert len(shelf.cards) == len(shelf.digests) == 3
    assert loaded(shelf) == ["a"]
    measuring.may_end.set()
    settled(shelf)
    assert loaded(shelf) == ["a", "b"]


def test_a_digest_that_nobody_has_is_refused(make: Callable[..., Shelf]) -> None:
    with pytest.raises(ModelError, match="sha256:0"):
        make().request("sha256:0", nobody)


def test_weights_that_are_not_finite_fail_the_load_with_the_reason(
    folder: Path, make: Callable[..., Shelf]
) -> None:
    save(folder, "a", variance=0.1, broken=True)
    shelf = make()
    with pytest.raises(ModelError, match=r"a cannot be loaded.*not finite"):
        shelf.load(digest(shelf, "a"))


def test_a_load_that_failed_is_tried_again_after_a_refresh(
    make: Callable[..., Shelf], measuring: Measuring
) -> None:
    shelf, ready = make(), threading.Event()
    wanted = digest(shelf, "a")
    measuring.error = RuntimeError("the device is on fire")
    assert shelf.request(wanted, ready.set) is None
    assert ready.wait(LIMIT)
    assert loaded(shelf) == []
    for _ in range(2):  # all the jobs that wait for it fail by one attempt
        with pytest.raises(ModelError, match="on fire"):
            shelf.request(wanted, ready.set)
    measuring.error = None
    shelf.refresh()
    assert shelf.load(wanted).name == "a"


def test_one_who_waits_and_fails_does_not_keep_others_from_being_told(
    make: Callable[..., Shelf], caplog: pytest.LogCaptureFixture
) -> None:
    shelf, ready = make(), threading.Event()

    def fail() -> None:
        raise RuntimeError("not my day")

    shelf.request(digest(shelf, "a"), fail)
    shelf.request(digest(shelf, "a"), ready.set)
    shelf.request(digest(shelf, "b"), fail)
    settled(shelf)
    assert loaded(shelf) == ["a", "b"]
    assert "not my day" in caplog.text


# Memory


def test_the_least_recently_used_model_is_unloaded_first(make: Callable[..., Shelf]) -> None:
    shelf = make(models=2)
    for name in "abac":
        shelf.load(digest(shelf, name))
    assert loaded(shelf) == ["a", "c"]


def test_a_pinned_model_stays_and_an_unpinned_one_goes(make: Callable[..., Shelf]) -> None:
    shelf = make(models=2)
    shelf.pin(digest(shelf, "a"))
    for name in "abc":
        shelf.load(digest(shelf, name))
    assert loaded(shelf) == ["a", "c"]


def test_a_load_without_room_waits_for_a_pinned_model_to_leave(make: Callable[..., Shelf]) -> None:
    shelf, ready = make(models=1), threading.Event()
    first, second, third = (digest(shelf, name) for name in "abc")
    for _ in range(2):
        shelf.pin(first)
    shelf.load(first)
    assert shelf.blocked is None
    assert shelf.request(second, ready.set) is None
    assert shelf.request(third, nobody) is None
    settled(shelf)
    assert shelf.blocked == second
    shelf.unpin(first)
    assert shelf.blocked == second  # pinned twice
    assert loaded(shelf) == ["a"]
    shelf.pin(second)
    shelf.unpin(first)
    assert ready.wait(LIMIT)
    settled(shelf)
    assert loaded(shelf) == ["b"]
    assert shelf.blocked == third


def test_a_model_larger_than_the_memory_is_loaded_alone_with_a_warning(
    make: Callable[..., Shelf], caplog: pytest.LogCaptureFixture
) -> None:
    shelf = make(models=0.5)
    for name in "ab":
        assert shelf.load(digest(shelf, name)).name == name
    assert loaded(shelf) == ["b"]
    assert "more than all models may take" in caplog.text


def test_a_model_larger_than_the_memory_does_not_push_out_a_pinned_one(
    make: Callable[..., Shelf],
) -> None:
    shelf = make(models=0.5)
    shelf.pin(digest(shelf, "a"))
    shelf.load(digest(shelf, "a"))
    assert shelf.request(digest(shelf, "b"), nobody) is None
    settled(shelf)
    assert loaded(shelf) == ["a"]


def test_an_unloaded_model_leaves_nothing_in_memory(make: Callable[..., Shelf]) -> None:
    shelf = make(models=1)
    served = shelf.load(digest(shelf, "a"))
    network = served.denoiser.network
    things: list[object] = [served, served.checkpoint, network, next(network.buffers())]
    traces = [weakref.ref(thing) for thing in things]
    del served, network, things
    shelf.load(digest(shelf, "b"))
    gc.collect()
    assert [trace() for trace in traces] == [None] * 4


def test_models_are_loaded_ahead_as_long_as_there_is_room(make: Callable[..., Shelf]) -> None:
    shelf = make(models=2.5)
    shelf.preload()
    settled(shelf)
    assert loaded(shelf) == ["a", "b"]


def test_a_u_net_takes_its_weights_twice_on_a_processor(
    tmp_path: Path, measuring: Measuring
) -> None:
    config = UNetConfig(in_channels=1, channels=(16,), blocks=1, head_channels=16)
    description = Description(
        architecture=config, process=VPLinear(), data=DataSpec(shape=(1, 8, 8), levels=256)
    )
    for name in ("a", "b"):
        weights = UNet(config).state_dict()
        checkpoints.save(tmp_path / f"{name}.safetensors", description, weights)
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    shelf = Shelf(tmp_path, CPU, budget=3 * size, curves=Curves(None, measuring))
    shelf.preload()
    settled(shelf)
    assert loaded(shelf) == ["a"]
    compiled = Shelf(tmp_path, CPU, compile=True)
    for header in compiled._offered.values():  # as it is and the copy, each packed, and compiled
        assert compiled._size(header) == shelf._size(header) // 2 * (2 + 2 + len(RANGES))


def test_a_pin_that_was_never_set_cannot_be_taken_back(make: Callable[..., Shelf]) -> None:
    shelf = make()
    with pytest.raises(ValueError, match="not pinned"):
        shelf.unpin(digest(shelf, "a"))


def test_the_memory_for_weights_is_half_of_what_the_machine_has() -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < default_budget(CPU) <= machine // 2


def test_many_threads_share_a_memory_for_two_models(make: Callable[..., Shelf]) -> None:
    shelf = make(models=2)
    digests = [digest(shelf, name) for name in "abc"]
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(30):
            wanted = digests[(number * 7 + turn * (number + 1)) % 3]
            shelf.pin(wanted)
            served = shelf.load(wanted)
            if served.checkpoint.digest != wanted or shelf.request(wanted, nobody) is not served:
                wrong.append(f"{number}, {turn}: a pinned model has changed")
            if len(loaded(shelf)) > 2:
                wrong.append(f"{number}, {turn}: more is loaded than there is room")
            del served
            shelf.unpin(wanted)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert wrong == []


# Files that change


def test_a_replaced_file_is_offered_and_the_old_version_stays_while_it_is_loaded(
    folder: Path, make: Callable[..., Shelf]
) -> None:
    shelf = make(models=2)
    old = digest(shelf, "a")
    shelf.pin(old)
    served = shelf.load(old)
    save(folder, "a", variance=0.9)
    shelf.refresh()
    new = digest(shelf, "a")
    assert new != old
    assert {old, new} <= shelf.digests
    assert shelf.load(new).checkpoint.digest == new
    assert shelf.load(old) is served
    shelf.unpin(old)
    for name in "ab":
        shelf.load(digest(shelf, name))
    assert old not in shelf.digests
    with pytest.raises(ModelError, match=old):
        shelf.request(old, nobody)


def test_an_old_version_that_is_not_loaded_is_gone_at_once(
    folder: Path, make: Callable[..., Shelf]
) -> None:
    shelf = make()
    old = digest(shelf, "a")
    save(folder, "a", variance=0.9)
    with pytest.raises(ModelError, match="was replaced"):  # before the next refresh
        shelf.load(old)
    shelf.refresh()
    assert old not in shelf.digests


def test_files_that_come_and_go_are_noticed(folder: Path, make: Callable[..., Shelf]) -> None:
    shelf = make()
    (folder / "a.safetensors").unlink()
    save(folder, "d", variance=0.4)
    (folder / "b.safetensors").write_bytes(b"half a file")
    shelf.refresh()
    assert [card["name"] for card in shelf.cards] == ["c", "d"]
    save(folder, "b", variance=0.2)
    shelf.refresh()
    assert [card["name"] for card in shelf.cards] == ["b", "c", "d"]


def test_a_file_is_not_read_again_while_its_size_and_time_are_the_same(
    folder: Path, make: Callable[..., Shelf], caplog: pytest.LogCaptureFixture
) -> None:
    shelf, path = make(), folder / "a.safetensors"
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"\xff" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    shelf.refresh()
    assert [card["name"] for card in shelf.cards] == ["a", "b", "c"]
    path.touch()
    shelf.refresh()
    shelf.refresh()
    assert [card["name"] for card in shelf.cards] == ["b", "c"]
    assert caplog.text.count("a.safetensors") == 1  # said once, not at every refresh


# Curves


def test_a_model_beside_running_jobs_is_measured_quickly(
    make: Callable[..., Shelf], measuring: Measuring
) -> None:
    shelf = make()
    shelf.pin(digest(shelf, "a"))
    shelf.load(digest(shelf, "a"))
    shelf.load(digest(shelf, "b"))
    shelf.unpin(digest(shelf, "a"))
    shelf.load(digest(shelf, "c"))
    assert measuring.rounds == [ROUNDS, 1, ROUNDS]


def refreshed(shelf: Shelf) -> None:
    shelf.refresh()
    settled(shelf)


# Versions that were replaced by publishing


def publish_over(folder: Path, runs: Path, name: str, *, variance: float) -> None:
    """What `fokker publish --force` does."""
    runs.mkdir()
    publish(save(runs, name, variance=variance), name, folder, force=True)


def test_a_published_model_is_offered_without_a_restart(
    folder: Path, make: Callable[..., Shelf], tmp_path: Path
) -> None:
    shelf = make()
    publish_over(folder, tmp_path / "run", "new", variance=0.7)
    shelf.refresh()
    assert [card["name"] for card in shelf.cards] == ["a", "b", "c", "new"]
    assert shelf.load(digest(shelf, "new")).name == "new"


def test_a_replaced_version_is_served_but_not_offered_even_to_a_worker_that_starts_later(
    folder: Path, make: Callable[..., Shelf], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = make()
    old = digest(running, "a")
    publish_over(folder, tmp_path / "run", "a", variance=0.9)
    running.refresh()
    for shelf in (running, make()):
        assert [card["name"] for card in shelf.cards] == ["a", "b", "c"]
        assert digest(shelf, "a") != old
        assert old in shelf.digests
        served = shelf.load(old)
        assert served.checkpoint.digest == old
        assert served.name == "a"
        assert shelf.load(digest(shelf, "a")).checkpoint.digest != old
    assert "left out" not in caplog.text


def test_a_version_replaced_between_two_refreshes_is_found_where_it_is_kept(
    folder: Path, make: Callable[..., Shelf], tmp_path: Path
) -> None:
    shelf = make()
    old = digest(shelf, "a")
    publish_over(folder, tmp_path / "run", "a", variance=0.9)
    assert shelf.load(old).checkpoint.digest == old


def test_a_version_replaced_while_it_is_read_is_read_again_where_it_is_kept(
    folder: Path, make: Callable[..., Shelf], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = make()
    old = digest(shelf, "a")
    read = worker.shelf.load

    def replace_first(path: Path) -> Checkpoint:
        if path.parent == folder:
            publish_over(folder, tmp_path / "run", "a", variance=0.9)
        return read(path)

    monkeypatch.setattr(worker.shelf, "load", replace_first)
    assert shelf.load(old).checkpoint.digest == old


def test_a_kept_version_whose_file_goes_is_gone(
    folder: Path, make: Callable[..., Shelf], tmp_path: Path
) -> None:
    shelf = make()
    old = digest(shelf, "a")
    publish_over(folder, tmp_path / "run", "a", variance=0.9)
    replaced_path(folder / "a.safetensors", old).unlink()
    shelf.refresh()
    assert old not in shelf.digests


def test_a_folder_that_is_none_is_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is no folder"):
        Shelf(tmp_path / "nowhere", CPU)
