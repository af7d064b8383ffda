import dataclasses
from pathlib import Path
from typing import cast

import pytest
import torch

import model
from model import checkpoint
from model.cores import exactly
from model.denoiser import Denoiser
from model.inference import prepare
from model.noise import Stream, normal, rademacher
from model.query import UNCONDITIONAL, Condition, Query
from model.unet import UNet, UNetConfig
from tests.laws.mixture import denoiser, draw, mixture

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def unet() -> Denoiser:
    torch.manual_seed(0)
    config = UNetConfig(in_channels=1, channels=(16, 32), classes=3, head_channels=16)
    network = UNet(config).eval().requires_grad_(False)
    return Denoiser(
        network=network, prediction="eps", dtype=torch.float32, device=torch.device("cpu")
    )


def query(rows: int, *, first: int = 0, **options: object) -> Query:
    keys = torch.arange(first, first + rows)
    settings = {
        "u": normal(keys, Stream.PRIOR, 0, SHAPE),
        "log_snr": torch.linspace(-5, 5, 64, dtype=torch.float64)[keys % 64],
        "condition": Condition.same(rows, 1),
    }
    return Query(**(settings | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [2, 8, 41])
@pytest.mark.parametrize("probes", [False, True])
def test_reproducible_rows_are_the_same_to_the_bit_in_any_company(
    unet: Denoiser, rows: int, probes: bool
) -> None:
    def ask(count: int) -> Query:
        p = rademacher(torch.arange(count), Stream.PROBE, 0, (2, *SHAPE)) if probes else None
        return query(count, probes=p, reproducible=True)

    alone, crowd = unet(ask(1)), unet(ask(rows))
    assert torch.equal(crowd.eps[:1], alone.eps)
    if probes:
        assert alone.products is not None
        assert crowd.products is not None
        assert torch.equal(crowd.products[:1], alone.products)


def test_a_row_of_the_shipped_network_is_the_same_to_the_bit_at_every_place_in_the_bucket() -> None:
    shipped = checkpoint.load(Path(model.__file__).parent / "zoo" / "digits.safetensors").denoiser()
    rows = shipped.bucket
    others = torch.arange(1, rows)
    answers = []
    for place in range(rows):
        keys = torch.cat((others[:place], torch.tensor([0]), others[place:] + 100 * place))
        asked = Query(
            u=normal(keys, Stream.PRIOR, 0, SHAPE)
            * torch.where(keys == 0, 1.0, 50.0)[:, None, None, None],
            log_snr=(keys % 7 - 3).double(),
            condition=Condition.same(rows),
            probes=rademacher(keys, Stream.PROBE, 0, (2, *SHAPE)),
            reproducible=True,
        )
        plain = shipped(dataclasses.replace(asked, probes=None))
        probed = shipped(asked)
        assert probed.products is not None
        answers.append((plain.eps[place], probed.eps[place], probed.products[place]))
    for answer in answers[1:]:
        assert all(map(torch.equal, answer, answers[0]))


@pytest.mark.parametrize("rows", [3, 20])
def test_reproducible_rows_are_the_same_to_the_bit_on_any_number_of_cores(rows: int) -> None:
    shipped = checkpoint.load(Path(model.__file__).parent / "zoo" / "digits.safetensors").denoiser()
    probes = rademacher(torch.arange(rows), Stream.PROBE, 0, (2, *SHAPE))
    answers = []
    for cores in (1, 2, 4):
        with exactly(cores):
            plain = shipped(query(rows, reproducible=True))
            probed = shipped(query(rows, reproducible=True, probes=probes))
        assert probed.products is not None
        answers.append((plain.eps, probed.eps, probed.products))
    for answer in answers[1:]:
        assert all(map(torch.equal, answer, answers[0]))


def test_guidance_mixes_the_conditional_and_the_unconditional_model(unet: Denoiser) -> None:
    plain = query(3)
    conditional = unet(plain).eps
    unconditional = unet(query(3, condition=Condition.same(3))).eps
    weights = torch.tensor([1.0, 0.0, 2.5], dtype=torch.float64)
    mixed = unet(query(3, condition=Condition(label=torch.ones(3).long(), guidance=weights))).eps
    w = weights[:, None, None, None]
    assert not torch.allclose(conditional, unconditional, atol=1e-3)
    assert torch.allclose(mixed, unconditional + w * (conditional - unconditional), atol=1e-5)


def test_guidance_applies_to_the_divergence_too(unet: Denoiser) -> None:
    def trace(condition: Condition) -> torch.Tensor:
        found = unet(query(2, condition=condition, exact_trace=True)).trace
        assert found is not None
        return found

    conditional, unconditional = trace(Condition.same(2, 1)), trace(Condition.same(2))
    mixed = trace(Condition.same(2, 1, guidance=3.0))
    expected = unconditional + 3.0 * (conditional - unconditional)
    assert torch.allclose(mixed, expected, rtol=1e-4, atol=1e-4)


def test_an_unconditional_row_is_not_guided(unet: Denoiser) -> None:
    condition = Condition.same(2, None, guidance=4.0)
    assert (condition.label == UNCONDITIONAL).all()
    found = unet(query(2, condition=condition)).eps
    assert torch.equal(found, unet(query(2, condition=Condition.same(2))).eps)


@pytest.mark.parametrize("label", [-1, 1])
def test_closed_form_trace_is_the_jacobian_s(label: int) -> None:
    network = mixture(components=3, shape=(1, 2, 2))
    log_snr = torch.tensor([0.5, -2.0], dtype=torch.float64)
    u = draw(network, 2)
    asked = Query(
        u=u,
        log_snr=log_snr,
        condition=Condition.same(2, None if label < 0 else label),
        exact_trace=True,
    )
    found = denoiser(network)(asked).trace
    assert found is not None
    for i in range(2):

        def eps(flat: torch.Tensor, i: int = i) -> torch.Tensor:
            row = flat.reshape(1, 1, 2, 2)
            return network(row, log_snr[i : i + 1], torch.tensor([label])).flatten()

        jacobian = torch.autograd.functional.jacobian(eps, u[i].flatten())
        assert float(found[i]) == pytest.approx(float(jacobian.trace()), rel=1e-10)


def test_probing_every_axis_sums_to_the_exact_trace(unet: Denoiser) -> None:
    axes = torch.eye(64, dtype=torch.float64).reshape(1, 64, *SHAPE)
    answer = unet(query(1, probes=axes, exact_trace=True))
    assert answer.products is not None
    assert answer.trace is not None
    assert float((answer.products * axes).sum()) == pytest.approx(float(answer.trace), rel=1e-4)


def test_reproducible_rows_and_gradients_never_see_the_fast_copy(unet: Denoiser) -> None:
    low = UNet(cast(UNet, unet.network).config).eval().requires_grad_(False)  # other weights
    both = dataclasses.replace(unet, fast=low)
    probes = rademacher(torch.arange(3), Stream.PROBE, 0, (2, *SHAPE))
    for options in ({"reproducible": True}, {"probes": probes}, {"exact_trace": True}):
        asked = query(3, **options)
        assert torch.equal(both(asked).eps, unet(asked).eps)
    assert not torch.allclose(both(query(3)).eps, unet(query(3)).eps, atol=1e-3)


def test_plain_rows_in_half_precision_stay_near_the_network(unet: Denoiser) -> None:
    low = UNet(cast(UNet, unet.network).config)
    low.load_state_dict(unet.network.state_dict())
    both = dataclasses.replace(unet, fast=prepare(low, dtype=torch.bfloat16))
    exact, near = unet(query(8)).eps, both(query(8)).eps
    assert 1e-5 < float((near - exact).abs().max()) < 0.1 * float(exact.abs().max())
