import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from benchmarks.network import inputs
from model.compiled import RANGES, Compiled, FixedSizes, can_compile
from model.cores import exactly, side_by_side
from model.inference import prepare
from model.unet import UNet, UNetConfig
from tests.model.networks import SMALL, Recorder, assert_same_up_to_rounding, random_network


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(1, [1]), (2, [4]), (4, [4]), (5, [8]), (8, [8]), (9, [8, 1]), (22, [8, 8, 8])],
)
def test_batches_are_split_and_padded_to_the_sizes_that_are_compiled(
    rows: int, expected: list[int]
) -> None:
    recorder = Recorder()
    fixed = FixedSizes(recorder, (8, 1, 4))
    asked = inputs(SMALL, rows, 8)
    with torch.no_grad():
        found = fixed(*asked)
    assert recorder.sizes == expected
    assert torch.equal(found, recorder(*asked))


@pytest.mark.parametrize("sizes", [(), (0, 4)])
def test_impossible_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="sizes must be positive"):
        FixedSizes(lambda u, log_snr, label: u, sizes)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"install g\+\+"):
        prepare(random_network(), compile_for=(3, 8, 8))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
def test_compiled_networks_give_the_plain_ones_outputs_and_are_compiled_once() -> None:
    """Of two shapes, for any rows and strides, in several threads at once; with frozen weights."""
    counters.clear()
    tiny = UNetConfig(in_channels=1, channels=(16,), classes=2, head_channels=16)
    pairs = []
    for config, side in ((tiny, 4), (SMALL, 8)):
        torch.manual_seed(0)
        plain = UNet(config).eval().requires_grad_(False)
        shape = (config.in_channels, side, side)
        pairs.append((config, side, plain, prepare(copy.deepcopy(plain), compile_for=shape)))
    packed = counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"]
    convolutions = [m for _, _, plain, _ in pairs for m in plain.modules() if type(m) is nn.Conv2d]
    assert packed >= len(convolutions) * (len(RANGES) - 1), "weights were not frozen"
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 2 * len(RANGES)

    def ask(pair: tuple[UNetConfig, int, UNet, nn.Module]) -> None:
        config, side, plain, compiled = pair
        for rows in (1, 2, 3, 15, 16, 17, 40):
            u, log_snr, label = inputs(config, rows, side)
            column = log_snr[:, None].expand(rows, 19).contiguous()[:, 3]  # as of a Plan's script
            with torch.no_grad():
                expected = plain(u, log_snr, label)
                for given in (u, u.to(memory_format=torch.channels_last)):
                    assert_same_up_to_rounding(compiled(given, column, label), expected)

    with exactly(4):
        side_by_side(ask, 2 * pairs)
    with exactly(1):
        for pair in pairs:
            ask(pair)
    assert counters["stats"]["unique_graphs"] == graphs, "compiled again"
    weights = [weakref.ref(pair[-1].network.embed[0].weight) for pair in pairs]
    del pairs, pair
    gc.collect()
    assert [weight() for weight in weights] == [None, None], "what is unloaded is kept"


@pytest.mark.parametrize(
    ("gradients", "threads", "rows", "runs"),
    [
        (False, 1, 64, "compiled"),
        (True, 1, 64, "as it is"),
        (False, 2, 64, "as it is"),
        (False, 2, 3, "compiled"),
    ],
)
def test_compiled_code_runs_without_gradients_on_one_core_or_for_few_values(
    gradients: bool, threads: int, rows: int, runs: str
) -> None:
    called = {"compiled": Recorder(), "as it is": Recorder()}
    network = Compiled(called["as it is"], called["compiled"])
    with torch.set_grad_enabled(gradients), exactly(threads):
        network(*inputs(SMALL, rows, 8))
    assert [name for name, recorder in called.items() if recorder.sizes] == [runs]
