"""Images a second of our training loop over diffusers' loop for unconditional models.

    python -m benchmarks.training [--large] [--batch N] [--rounds 5] [--steps N] [--threads N]
                                  [--compile] [--channels-last]

The peer is the loop of diffusers' `train_unconditional.py` as it is recommended to be run, with EMA
and without logging, progress bar and checkpoints: `UNet2DModel` of the same widths, depths, heads
and dropout, `DDPMScheduler`, AdamW, the cosine schedule, clipping, `EMAModel`. Its images come
decoded from memory through torch's `DataLoader`; in its own script they would be decoded again in
every epoch. Ours is `training.trainer.Trainer`, with its data, averages and the reading of the loss
that stops a run. Both train in float32, without classes, on the same images; a round is some steps
of one and then as many of the other, and a round's ratio is of the two in it.

--large: 36 M parameters at 32×32 instead of the digits network at 8×8. With --threads 1 the clock
is the CPU time of that thread, which other processes disturb least; else it is the wall clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.network import LARGE
from model.data import DataSpec
from model.unet import UNetConfig
from training import build
from training.config import Config
from training.data import Dataset as Images
from training.data import Split
from training.parallel import World
from training.trainer import Trainer

CPU = torch.device("cpu")
MANY = 100_000  # steps of the schedules: none of them ends

Run = Callable[[int], None]


def settings(large: bool, batch_size: int, compiled: bool, channels_last: bool = False) -> Config:
    """Of the shipped digits model, or of Ho et al. 2020's for CIFAR-10; both with a mirror."""
    network = (
        {
            "channels": LARGE.channels,
            "attention": LARGE.attention,
            "groups": LARGE.groups,
            "head_channels": LARGE.head_channels,
        }
        if large
        else {"channels": (48, 64), "groups": 8, "head_channels": 16}
    )
    return Config.model_validate(
        {
            "data": {"flip": True},
            "model": network | {"blocks": 2, "dropout": 0.1, "class_conditional": False},
            "train": {
                "batch_size": batch_size,
                "steps": MANY,
                "compile": compiled,
                "channels_last": channels_last,
            },
        }
    )


def images(large: bool) -> Images:
    """Random ones: what they show does not matter here."""
    shape = (3, 32, 32) if large else (1, 8, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (1500, *shape), dtype=np.uint8)
    split = Split(
        images=pixels,
        rows=np.arange(len(pixels)),
        labels=torch.full((len(pixels),), -1),
        files=[str(index) for index in range(len(pixels))],
    )
    spec = DataSpec(shape=shape, levels=256)
    return Images(name="random", spec=spec, train=split, held_out=split, fingerprint="")


def ours(config: Config, dataset: Images) -> tuple[Run, nn.Module]:
    architecture = build.make_architecture(config.model, dataset.spec)
    world = World(rank=0, size=1, device=CPU)
    trainer = Trainer(config, dataset, build.make_process(config), architecture, world)

    def run(steps: int) -> None:
        for _ in range(steps):
            assert trainer.advance().report.isfinite().all()  # read, as the loop does

    return run, trainer.network


class Floats(Dataset[Tensor]):
    """The peer's images: in memory, mirrored and scaled to [−1, 1] one by one."""

    def __init__(self, levels: np.ndarray) -> None:
        self._levels = torch.from_numpy(levels)

    def __len__(self) -> int:
        return len(self._levels)

    def __getitem__(self, index: int) -> Tensor:
        image = self._levels[index].float().div(127.5).sub(1.0)
        return image.flip(-1) if torch.rand(()) < 0.5 else image


def peer(config: UNetConfig, side: int) -> UNet2DModel:
    levels = range(len(config.channels))
    kinds = ["Attn" if level in config.attention else "" for level in levels]
    return UNet2DModel(
        sample_size=side,
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        block_out_channels=config.channels,
        layers_per_block=config.blocks,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        attention_head_dim=config.head_channels,
        norm_num_groups=config.groups,
        dropout=config.dropout,
    )


def theirs(config: Config, dataset: Images) -> tuple[Run, nn.Module]:
    architecture = build.make_architecture(config.model, dataset.spec)
    network = peer(architecture, dataset.spec.shape[1]).train()
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    rates = get_scheduler(
        "cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=MANY
    )
    ema = EMAModel(
        network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    loader = DataLoader(
        Floats(dataset.train.images), batch_size=config.train.batch_size, shuffle=True
    )

    def batches() -> Iterator[Tensor]:
        while True:
            yield from (batch for batch in loader if len(batch) == config.train.batch_size)

    stream = batches()

    def run(steps: int) -> None:
        for _ in range(steps):
            clean = next(stream)
            noise = torch.randn(clean.shape)
            times = torch.randint(0, 1000, (len(clean),))
            noisy = scheduler.add_noise(clean, noise, times)
            loss = F.mse_loss(network(noisy, times).sample, noise)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            ema.step(network.parameters())

    return run, network


def seconds(run: Run, steps: int) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    run(steps)
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batch_size = options.batch or (16 if options.large else 128)
    steps = options.steps or (1 if options.large else 12)
    dataset = images(options.large)
    config = settings(options.large, batch_size, options.compile, options.channels_last)
    runs = {"ours": ours(config, dataset), "diffusers": theirs(config, dataset)}
    sizes = {
        name: sum(w.numel() for w in network.parameters()) for name, (_, network) in runs.items()
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; parameters {sizes}")
    assert abs(sizes["ours"] / sizes["diffusers"] - 1.0) < 0.02
    for run, _ in runs.values():
        run(2)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            speeds[name].append(steps * batch_size / seconds(runs[name][0], steps))
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["diffusers"], strict=True)]
    print(f"\n| {batch_size} images of {dataset.spec.shape} a step | images/s | range |")
    print("|---|---|---|")
    for name, found in speeds.items():
        print(f"| {name} | {statistics.median(found):.1f} | {min(found):.1f} … {max(found):.1f} |")
    print(f"| ratio | {statistics.median(ratios):.2f} | {min(ratios):.2f} … {max(ratios):.2f} |")


if __name__ == "__main__":
    main()
