import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import model
from benchmarks.network import adopt, ask_peer, flops, inputs, peer
from model import checkpoint
from model.analytic import GaussianMixture, GaussianMixtureConfig
from model.cores import exactly, side_by_side
from model.inference import (
    RANGES,
    ChannelsLastGroupNorm,
    Compiled,
    FixedSizes,
    PackedConv2d,
    SharedAmongCores,
    can_compile,
    can_pack,
    prepare,
    rounded,
)
from model.unet import UNet, UNetConfig

SHIPPED = Path(model.__file__).parent / "zoo" / "digits.safetensors"
SMALL = UNetConfig(
    in_channels=3, channels=(16, 32, 32), attention=(1,), classes=4, head_channels=16
)


def shipped() -> UNet:
    network = checkpoint.load(SHIPPED).network.eval().requires_grad_(False)
    assert isinstance(network, UNet)
    return network


def random_network() -> UNet:
    torch.manual_seed(0)
    return UNet(SMALL).eval().requires_grad_(False)


def assert_same_up_to_rounding(found: Tensor, expected: Tensor) -> None:
    """Within 2e-6 of the largest value, which is a few times the eps of its float32 terms."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("rows", [1, 16, 64])
def test_prepared_digits_network_gives_the_plain_one_s_output(rows: int) -> None:
    plain = shipped()
    asked = inputs(plain.config, rows, 8)
    served = prepare(shipped())
    with torch.no_grad():
        assert_same_up_to_rounding(served(*asked), plain(*asked))


def test_preparing_keeps_the_checkpoint_s_keys_and_values() -> None:
    before, after = shipped().state_dict(), prepare(shipped()).state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def convolutions(**options: int) -> tuple[nn.Conv2d, PackedConv2d]:
    """A plain one and a packed one of the same weights, channels-last, without gradients."""
    torch.manual_seed(0)
    plain, packed = nn.Conv2d(16, 48, **options), PackedConv2d(16, 48, **options)  # type: ignore[arg-type]
    packed.load_state_dict(plain.state_dict())
    for module in (plain, packed):
        module.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return plain, packed


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1},
    ],
)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_packed_convolution_is_the_plain_one(
    rows: int, options: dict[str, int], dtype: torch.dtype, most: float
) -> None:
    if not can_pack(dtype):
        pytest.skip(f"oneDNN has no {dtype} for this processor")
    plain, packed = (module.to(dtype) for module in convolutions(**options))
    with torch.no_grad():
        for side in (8, 64):  # packed once, for images of any size
            x = torch.randn(rows, 16, side, side, dtype=dtype)
            torch.testing.assert_close(packed(x), plain(x), rtol=0, atol=most)
    assert packed.packed is not None


def test_weights_that_are_loaded_later_are_packed_anew() -> None:
    plain, packed = convolutions(kernel_size=3)
    x = torch.randn(8, 16, 8, 8)
    with torch.no_grad():
        packed(x)
        doubled = {name: 2.0 * weight for name, weight in plain.state_dict().items()}
        for module in (plain, packed):
            module.load_state_dict(doubled)
        torch.testing.assert_close(packed(x), plain(x), rtol=0, atol=4e-6)
        torch.testing.assert_close(copy.deepcopy(packed)(x), plain(x), rtol=0, atol=4e-6)
        twice = packed.double()(x.double())
        torch.testing.assert_close(twice, plain.double()(x.double()), rtol=0, atol=1e-13)


def test_bf16_works_where_onednn_does_not_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.inference.can_pack", lambda dtype: False)
    lowered, plain = prepare(random_network(), dtype=torch.bfloat16), random_network()
    asked = inputs(SMALL, 4, 8)
    with torch.no_grad():
        assert float((lowered(*asked) - plain(*asked)).abs().max()) < 0.1
    assert all(m.packed is None for m in lowered.modules() if isinstance(m, PackedConv2d))


def test_network_in_float64_convolves_in_float64() -> None:
    asked = [part.double() if part.is_floating_point() else part for part in inputs(SMALL, 4, 8)]
    plain, served = random_network().double(), prepare(random_network().double())
    with torch.no_grad():
        torch.testing.assert_close(served(*asked), plain(*asked), rtol=0, atol=1e-13)


def test_gradients_go_through_a_prepared_network() -> None:
    u, log_snr, label = inputs(SMALL, 3, 8)

    def gradient(network: nn.Module) -> Tensor:
        x = u.clone().requires_grad_(True)
        (found,) = torch.autograd.grad(network(x, log_snr, label).square().sum(), x)
        return found

    expected, found = gradient(random_network()), gradient(prepare(random_network()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_row_at_one_batch_size_is_the_same_to_the_bit_whatever_stands_beside_it() -> None:
    served = prepare(shipped())
    u, log_snr, label = inputs(shipped().config, 16, 8)
    with torch.no_grad():
        alone = served(*(part[:1].expand(16, *part.shape[1:]) for part in (u, log_snr, label)))[0]
        for place in range(16):
            order = torch.arange(16).roll(place)
            answer = served(u[order] * 1.0, log_snr[order], label[order])[place]
            assert torch.equal(answer, alone)


def test_a_row_of_the_own_norm_is_the_same_to_the_bit_whatever_stands_beside_it() -> None:
    norm = ChannelsLastGroupNorm(8, 48)
    x = torch.randn(64, 48, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        first = norm(x)
        for shift in (1, 7, 33):
            assert torch.equal(norm(x.roll(shift, 0)).roll(-shift, 0), first)


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_own_norm_is_group_norm(mean: float) -> None:
    torch.manual_seed(0)
    plain, own = nn.GroupNorm(8, 48), ChannelsLastGroupNorm(8, 48)
    for norm in (plain, own):
        norm.weight.data, norm.bias.data = torch.linspace(0.5, 2, 48), torch.linspace(-1, 1, 48)
    x = (torch.randn(64, 48, 8, 8) + mean).to(memory_format=torch.channels_last)
    with torch.no_grad():
        found, expected = (
            own(x),
            nn.functional.group_norm(x.double(), 8, plain.weight.double(), plain.bias.double()),
        )
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert float((found - expected).abs().max()) < 1e-5
    assert not torch.equal(found, plain(x)), "the own computation did not run"


def test_other_networks_are_returned_untouched() -> None:
    network = GaussianMixture(GaussianMixtureConfig(components=2, shape=(1, 2, 2), variance=0.1))
    assert prepare(network, dtype=torch.bfloat16, compile_for=(1, 2, 2)) is network


def test_bf16_takes_and_gives_float32_and_comes_close() -> None:
    asked = inputs(SMALL, 4, 8)
    lowered = prepare(random_network(), dtype=torch.bfloat16)
    with torch.no_grad():
        expected, found = random_network()(*asked), lowered(*asked)
    assert found.dtype == torch.float32
    error = float((found - expected).norm() / expected.norm())
    assert 1e-5 < error < 0.03


def test_bf16_on_a_processor_is_that_of_products_alone() -> None:
    lowered = prepare(random_network(), dtype=torch.bfloat16)
    types = {name: weight.dtype for name, weight in lowered.named_parameters()}
    low = {name for name, dtype in types.items() if dtype == torch.bfloat16}
    assert not [name for name in low if "norm" in name or name.startswith(("stem", "head"))]
    products = ("conv1", "conv2", "shortcut", "qkv", "out", "downsample", "upsample")
    expected = {n for n in types if n.startswith(("down", "middle", "up")) and "norm" not in n}
    assert low == expected
    assert all(any(part in name for part in products) for name in low)


def test_bf16_moves_the_noise_of_an_almost_clean_image_by_a_five_hundredth_at_most() -> None:
    plain, lowered = shipped(), prepare(shipped(), dtype=torch.bfloat16)
    torch.manual_seed(0)
    u, _, label = inputs(plain.config, 16, 8)
    with torch.no_grad():
        asked = u, torch.full((16,), 8.0), label
        error = float((lowered(*asked) - plain(*asked)).square().mean().sqrt())
    assert error < 0.002 * float(plain(*asked).square().mean().sqrt())


def test_a_core_computes_few_different_numbers_of_rows_and_few_in_vain() -> None:
    found = [rounded(rows) for rows in range(1, 257)]
    assert found[:16] == list(range(1, 17))
    assert all(rows <= size < 1.125 * rows for rows, size in enumerate(found, start=1))
    assert len(set(found)) == 16 + 4 * 8


@pytest.mark.parametrize("rows", [1, 11, 35, 64])
def test_cores_that_share_the_rows_give_the_network_s_answer_in_order(rows: int) -> None:
    network = random_network()
    asked = inputs(SMALL, rows, 8)
    with torch.no_grad(), exactly(2):
        assert_same_up_to_rounding(SharedAmongCores(network)(*asked), network(*asked))


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


def test_cores_share_smaller_batches_of_compiled_code() -> None:
    recorder = Recorder()
    asked = inputs(SMALL, 12, 8)
    with torch.no_grad(), exactly(2):
        SharedAmongCores(recorder)(*asked)
        SharedAmongCores(Compiled(random_network(), recorder))(*asked)
        SharedAmongCores(Compiled(random_network(), recorder))(*inputs(SMALL, 2, 8))
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


class Recorder(nn.Module):
    """A row's answer is its sum; remembers the sizes it was called at."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        self.sizes.append(len(u))
        return u * 2 + log_snr[:, None, None, None] + label[:, None, None, None]


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
            column = log_snr[:, None].expand(rows, 17).contiguous()[:, 3]  # as of a Plan's script
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


@pytest.mark.parametrize("attention", [(), (1,)])
def test_diffusers_network_with_the_same_weights_is_the_same_function(
    attention: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    config = UNetConfig(
        in_channels=3, channels=(16, 32), attention=attention, classes=4, head_channels=16
    )
    theirs = peer(config)
    ours = adopt(theirs, config)
    served = prepare(copy.deepcopy(ours))
    asked = inputs(config, 4, 8)
    with torch.no_grad():
        torch.testing.assert_close(served(*asked), ask_peer(theirs, *asked), rtol=0, atol=1e-5)
        # Of the network before: the counter does not know packed convolutions.
        work = flops(lambda: ours(*asked)) / flops(lambda: ask_peer(theirs, *asked))
    assert work == pytest.approx(1.0, abs=0.02)
    assert sum(w.numel() for w in theirs.parameters()) == sum(w.numel() for w in ours.parameters())
