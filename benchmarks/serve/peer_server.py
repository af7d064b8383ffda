"""The peer: diffusers' U-Net and DDPM scheduler behind LitServe with its dynamic batching.

    python -m benchmarks.serve.peer_server PORT

Written as its user would: batches of up to 64 requests, collected for up to 50 ms; the requests
of a batch that ask for equally many steps are denoised together. The network has the widths,
depths and parameters (1,187,969) of the digits network; its weights do not matter here.
"""

# diffusers and LitServe have no annotations.
# mypy: disable-error-code="no-untyped-call,attr-defined,import-not-found"

from __future__ import annotations

import base64
import io
import sys
import warnings
from collections import defaultdict
from typing import Any

import litserve
import torch
from PIL import Image

MAX_BATCH, BATCH_TIMEOUT = 64, 0.05
NO_CLASS = 10


class Digits(litserve.LitAPI):  # type: ignore[misc]
    """`{"steps", "count", "seed"}` → `{"images": [PNG in base64, …]}`."""

    def setup(self, device: str) -> None:
        """Make the network, once a process."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own dependencies
            from diffusers import DDPMScheduler, UNet2DModel
        self.unet = (
            UNet2DModel(
                sample_size=8,
                in_channels=1,
                out_channels=1,
                block_out_channels=(48, 64),
                layers_per_block=2,
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
                norm_num_groups=8,
                attention_head_dim=16,
                num_class_embeds=NO_CLASS + 1,
            )
            .eval()
            .to(device)
        )
        self.scheduler = DDPMScheduler(clip_sample=False)
        self.where = device

    def predict(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer a batch: one run of the sampler for every number of steps in it."""
        groups: dict[int, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[request["steps"]].append(place)
        answers: list[dict[str, Any]] = [{} for _ in requests]
        for steps, places in groups.items():
            counts = [requests[place]["count"] for place in places]
            seed = requests[places[0]]["seed"]
            parts = self.sample(steps, sum(counts), seed).split(counts)
            for place, images in zip(places, parts, strict=True):
                answers[place] = {"images": [png(image) for image in images]}
        return answers

    @torch.inference_mode()
    def sample(self, steps: int, rows: int, seed: int) -> torch.Tensor:
        """Images by ancestral sampling: (rows, 8, 8) in 0..255."""
        generator = torch.Generator(self.where).manual_seed(seed)
        x = torch.randn(rows, 1, 8, 8, generator=generator, device=self.where)
        label = torch.full((rows,), NO_CLASS, device=self.where)
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            eps = self.unet(x, t, class_labels=label).sample
            x = self.scheduler.step(eps, t, x, generator=generator).prev_sample
        return ((x[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu()


def png(image: torch.Tensor) -> str:
    """An image (8, 8) in 0..255 as a PNG file in base64."""
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    # The default of 30 seconds would refuse most of the mixed load.
    api = Digits(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=600)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
