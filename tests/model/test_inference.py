import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.network import adopt, ask_peer, flops, inputs, peer
from model.analytic import GaussianMixture, GaussianMixtureConfig
from model.inference import prepare
from model.layers import PackedConv2d
from model.unet import UNetConfig
from tests.model.networks import SMALL, assert_same_up_to_rounding, random_network, shipped


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


def test_bf16_works_where_onednn_does_not_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.layers.can_pack", lambda dtype: False)
    lowered, plain = prepare(random_network(), dtype=torch.bfloat16), random_network()
    asked = inputs(SMALL, 4, 8)
    with torch.no_grad():
        assert float((lowered(*asked) - plain(*asked)).abs().max()) < 0.1
    assert all(m.derived is None for m in lowered.modules() if isinstance(m, PackedConv2d))


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
