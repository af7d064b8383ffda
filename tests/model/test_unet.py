import pytest
import torch

from model.unet import UNet, UNetConfig

CONFIG = UNetConfig(
    in_channels=3, channels=(16, 32, 32), blocks=2, attention=(1,), classes=4, head_channels=16
)


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG).eval()


def test_prediction_has_the_image_s_shape(network: UNet) -> None:
    u = torch.randn(2, 3, 8, 12)
    assert network(u, torch.zeros(2), torch.tensor([0, -1])).shape == u.shape


def test_noise_level_and_label_each_change_the_prediction(network: UNet) -> None:
    u = torch.randn(1, 3, 8, 8)

    def ask(log_snr: float, label: int) -> torch.Tensor:
        return network(u, torch.tensor([log_snr]), torch.tensor([label])).detach()

    base = ask(0.0, 0)
    for other in (ask(3.0, 0), ask(0.0, 1), ask(0.0, -1)):
        assert float((base - other).abs().max()) > 1e-4


def test_every_weight_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = UNet(CONFIG)
    out = network(torch.randn(5, 3, 8, 8), torch.zeros(5), torch.tensor([0, 1, 2, 3, -1]))
    out.square().mean().backward()
    idle = [name for name, w in network.named_parameters() if w.grad is None or not w.grad.any()]
    assert idle == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"channels": (20,)}, "multiple of groups"), ({"attention": (3,)}, "levels 0 … 2")],
)
def test_an_impossible_architecture_is_refused(wrong: dict[str, object], message: str) -> None:
    fields = {"in_channels": 1, "channels": (16, 16, 16), "head_channels": 16} | wrong
    with pytest.raises(ValueError, match=message):
        UNetConfig(**fields)  # type: ignore[arg-type]
