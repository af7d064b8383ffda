"""What the operations answer with: the formats of images and latents, grids and percentiles."""

import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.query import run
from service.jobs import parameters as p
from service.jobs.arrays import pack, unpack
from worker.operations import Outcome, start
from worker.shelf import ServedModel

FAST = {"name": "ddim", "steps": 4}


def outcome(
    served: ServedModel, operation: str, inputs: bytes | None = None, **parameters: Any
) -> Outcome:
    body = {"model": served.name} | parameters
    return run(start(served, p.OPERATIONS[operation].model_validate(body), inputs), served.denoiser)


def files(found: Outcome) -> dict[str, bytes]:
    return {artifact.name: artifact.encode() for artifact in found.artifacts}


def generate(served: ServedModel, **parameters: Any) -> tuple[Outcome, dict[str, bytes]]:
    found = outcome(served, "generate", count=3, sampler=FAST, **parameters)
    return found, files(found)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_pictures_come_one_a_file_with_a_grid_in_their_own_format(
    served: ServedModel, kind: str
) -> None:
    found, made = generate(served, format=kind)
    assert list(made) == [f"0.{kind}", f"1.{kind}", f"2.{kind}", f"grid.{kind}"]
    assert [image["artifact"] for image in found.result["images"]] == list(made)[:3]
    assert found.result["grid"] == f"grid.{kind}"
    assert {artifact.media_type for artifact in found.artifacts} == {f"image/{kind}"}
    sheet = Image.open(io.BytesIO(made[f"grid.{kind}"]))
    assert (sheet.format, sheet.size) == (kind.upper(), (9, 9))
    first = np.asarray(Image.open(io.BytesIO(made[f"0.{kind}"])).convert("L"))
    np.testing.assert_array_equal(np.asarray(sheet.convert("L"))[:4, :4], first)


def test_a_grid_can_be_left_out(served: ServedModel) -> None:
    found, made = generate(served, grid=False)
    assert list(made) == ["0.png", "1.png", "2.png"]
    assert found.result["grid"] is None


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_arrays_come_without_a_grid_unless_one_is_asked_for(served: ServedModel, kind: str) -> None:
    found, made = generate(served, format=kind)
    assert list(made) == [f"images.{kind}"]
    assert {image["artifact"] for image in found.result["images"]} == {f"images.{kind}"}
    assert found.result["grid"] is None
    found, made = generate(served, format=kind, grid=True)
    assert list(made) == [f"images.{kind}", "grid.png"]
    assert found.result["grid"] == "grid.png"


def test_every_format_holds_the_same_images(served: ServedModel) -> None:
    levels = np.load(io.BytesIO(generate(served, format="npy")[1]["images.npy"]))
    assert (levels.dtype, levels.shape) == (np.float64, (3, 1, 4, 4))
    arrays, _ = unpack(generate(served, format="safetensors")[1]["images.safetensors"])
    np.testing.assert_array_equal(arrays["images"], levels)
    for kind in ("png", "webp"):
        made = generate(served, format=kind)[1]
        pixels = [
            np.asarray(Image.open(io.BytesIO(made[f"{i}.{kind}"])).convert("L")) for i in range(3)
        ]
        np.testing.assert_array_equal(np.stack(pixels)[:, None], np.rint(levels))


def test_a_safetensors_file_says_what_its_images_are_and_how_to_draw_one_again(
    served: ServedModel,
) -> None:
    found, made = generate(served, format="safetensors", class_label=1)
    arrays, metadata = unpack(made["images.safetensors"])
    seeds = json.loads(metadata["seeds"])
    assert seeds == [image["seed"] for image in found.result["images"]]
    assert metadata["model"] == served.name
    assert metadata["digest"] == served.checkpoint.digest
    assert metadata["levels"] == "256"
    assert json.loads(metadata["sampler"])["steps"] == 4
    again = outcome(
        served, "generate", seeds=seeds[2:], sampler=FAST, class_label=1, format="safetensors"
    )
    single, _ = unpack(files(again)["images.safetensors"])
    np.testing.assert_allclose(single["images"][0], arrays["images"][2], atol=1e-9)


def test_a_grid_that_is_too_large_for_webp_is_a_png(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.pictures.WEBP_SIDE", 8)
    found, made = generate(served, format="webp")
    assert found.result["grid"] == "grid.png"
    assert Image.open(io.BytesIO(made["grid.png"])).format == "PNG"


LEVELS = pack({"levels": np.random.default_rng(0).integers(60, 200, (2, 1, 4, 4)).astype(float)})
HEUN = {"name": "heun", "steps": 10}


def test_latents_come_as_npy_where_asked_for_and_decode_as_well(served: ServedModel) -> None:
    packed = files(outcome(served, "invert", LEVELS, solver=HEUN))
    found = outcome(served, "invert", LEVELS, solver=HEUN, format="npy")
    assert [image["latent"] for image in found.result["images"]] == [
        {"artifact": "latents.npy", "index": i} for i in range(2)
    ]
    latents = np.load(io.BytesIO(files(found)["latents.npy"]))
    np.testing.assert_array_equal(latents, unpack(packed["latents.safetensors"])[0]["latents"])


CHEAP = {"divergence": {"kind": "exact"}, "dequantization": None}


def knowing(served: ServedModel, training: Mapping[str, Any]) -> ServedModel:
    """The model as if its checkpoint's training had said this."""
    description = dataclasses.replace(served.checkpoint.description, training=training)
    checkpoint = dataclasses.replace(served.checkpoint, description=description)
    return dataclasses.replace(served, checkpoint=checkpoint)


def test_a_percentile_says_where_an_image_stands_among_held_out_ones(served: ServedModel) -> None:
    plain = outcome(served, "loglik", LEVELS, **CHEAP).result["images"]
    assert [image["percentile"] for image in plain] == [None, None]
    bits = sorted(image["bits_per_dim"] for image in plain)
    entry = {"levels": [0, 0.5, 1], "values": [bits[0] - 1, bits[0], bits[0] + 1e-3]}
    wise = knowing(served, {"quantiles": {"bits_per_dim": entry}})
    found = outcome(wise, "loglik", LEVELS, **CHEAP).result["images"]
    usual, unusual = sorted(found, key=lambda image: image["bits_per_dim"])
    assert usual["percentile"] == pytest.approx(50, abs=0.1)
    assert unusual["percentile"] == 100


def test_an_integral_that_was_not_finished_has_no_percentile(served: ServedModel) -> None:
    entry = {"levels": [0, 1], "values": [0.0, 10.0]}
    wise = knowing(served, {"quantiles": {"bits_per_dim": entry}})
    solver = {"name": "adaptive", "tolerance": 1e-6, "max_calls": 8}
    found = outcome(wise, "loglik", LEVELS, solver=solver, **CHEAP).result["images"]
    assert [image["percentile"] for image in found] == [None, None]


def test_quantiles_that_are_unusable_leave_the_percentile_out_and_a_warning(
    served: ServedModel, caplog: pytest.LogCaptureFixture
) -> None:
    odd = knowing(served, {"quantiles": {"bits_per_dim": {"levels": "all"}}})
    found = outcome(odd, "loglik", LEVELS, **CHEAP).result["images"]
    assert [image["percentile"] for image in found] == [None, None]
    assert "unusable quantiles of bits_per_dim" in caplog.text


def test_a_bound_has_no_percentile(served: ServedModel) -> None:
    draws = {"draws": 2, "recon_draws": 2}
    found = outcome(served, "loglik", LEVELS, method="elbo", bound=draws).result["images"]
    assert not any("percentile" in image for image in found)
    assert torch.isfinite(torch.tensor([image["bits_per_dim"] for image in found])).all()
