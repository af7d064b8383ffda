"""The U-Net of denoising diffusion models.

Ho et al. 2020, appendix B, in the form the field settled on: residual blocks of GroupNorm → SiLU
→ convolution with the noise level added between the two, self-attention at chosen levels, strided
convolutions down, nearest-neighbour and a convolution up, skips by concatenation.

The noise level is the log-SNR, scaled so that [−20, 20] becomes [1000, 0] (the range of DDPM's
timesteps) and embedded by sines and cosines; a class adds a learned embedding to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """channels: width of each level, from full resolution down; each next level halves it.

    in_channels: image channels. blocks: residual blocks a level (one more on the way up).
    attention: which levels have self-attention (the middle always does). classes: 0 for none.
    groups: of every GroupNorm. dropout: in training, between a block's two convolutions.
    """

    in_channels: int
    channels: tuple[int, ...]
    blocks: int = 2
    attention: tuple[int, ...] = ()
    classes: int = 0
    groups: int = 8
    head_channels: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for width in self.channels:
            if width % self.groups or width % self.head_channels:
                raise ValueError(
                    f"every width must be a multiple of groups={self.groups} and of "
                    f"head_channels={self.head_channels}, got {width} in channels={self.channels}"
                )
        if any(not 0 <= level < len(self.channels) for level in self.attention):
            raise ValueError(
                f"attention names levels 0 … {len(self.channels) - 1}, got {self.attention}"
            )

    @property
    def embedding(self) -> int:
        """Width of the noise-level embedding."""
        return 4 * self.channels[0]

    @property
    def divisor(self) -> int:
        """Height and width of an image must be multiples of this."""
        return int(2 ** (len(self.channels) - 1))


def sinusoid(position: Tensor, width: int) -> Tensor:
    """cos and sin of position at geometric frequencies 1 … 1/10000: (rows, width)."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=position.device) / half
    angles = position.float()[:, None] * torch.exp(-math.log(10_000.0) * exponent)
    return torch.cat((angles.cos(), angles.sin()), dim=1).to(position.dtype)


def silu(x: Tensor) -> Tensor:
    """x σ(x), in place where no gradient can be asked for: x must be the caller's own."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """GroupNorm → SiLU → conv, + noise level, GroupNorm → SiLU → dropout → conv, + shortcut."""

    def __init__(self, config: UNetConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(config.groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(config.groups, outputs)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.outputs = outputs

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """The block on x (rows, inputs, H, W); level (rows, outputs, 1, 1), its own projection."""
        h: Tensor = self.conv1(silu(self.norm1(x)))
        h.add_(level)  # no gradient needs a convolution's own output
        h = self.conv2(self.dropout(silu(self.norm2(h))))
        return h.add_(self.shortcut(x))


class Attention(nn.Module):
    """Multi-head self-attention over the pixels, residual."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = channels // config.head_channels
        self.norm = nn.GroupNorm(config.groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The block on x (rows, channels, H, W)."""
        rows, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).view(rows, -1, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, -1, channels)
        out: Tensor = x + self.out(mixed).transpose(1, 2).reshape(rows, channels, height, width)
        return out


class Block(nn.Module):
    """A residual block and, at the levels that have it, attention."""

    def __init__(self, config: UNetConfig, level: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = ResidualBlock(config, inputs, outputs)
        attends = level in config.attention
        self.attention = Attention(config, outputs) if attends else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """The block on x (rows, inputs, H, W); level (rows, outputs, 1, 1)."""
        out: Tensor = self.attention(self.residual(x, level))
        return out


class UNet(nn.Module):
    """Maps (u (rows, C, H, W), log_snr (rows,), label (rows,) int64) to a prediction shaped as u.

    label −1 is the unconditional model. Input and output, the embedding, stem and head are in one
    dtype; what lies between stem and head may be of another (`model.inference.prepare`).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first = config.channels[0]
        self.embed = nn.Sequential(
            nn.Linear(first, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
        )
        # The row behind the last class is "no class".
        self.classes = (
            nn.Embedding(config.classes + 1, config.embedding) if config.classes else None
        )
        self.stem = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.down, self.downsample, skips = self._down(config)
        last = config.channels[-1]
        self.middle = nn.ModuleList(
            [ResidualBlock(config, last, last), ResidualBlock(config, last, last)]
        )
        self.middle_attention = Attention(config, last)
        self.up, self.upsample = self._up(config, skips)
        self.norm = nn.GroupNorm(config.groups, first)
        self.head = nn.Conv2d(first, config.in_channels, 3, padding=1)
        # One linear for the noise level of every block: one small product instead of many.
        self.widths = [m.outputs for m in self.modules() if isinstance(m, ResidualBlock)]
        self.levels = nn.Linear(config.embedding, sum(self.widths))

    def _down(self, config: UNetConfig) -> tuple[nn.ModuleList, nn.ModuleList, list[int]]:
        width = config.channels[0]
        skips, down, downsample = [width], nn.ModuleList(), nn.ModuleList()
        for level, outputs in enumerate(config.channels):
            inputs = [width] + [outputs] * (config.blocks - 1)
            down.append(nn.ModuleList(Block(config, level, i, outputs) for i in inputs))
            skips += [outputs] * config.blocks
            width = outputs
            if level < len(config.channels) - 1:
                downsample.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        return down, downsample, skips

    def _up(self, config: UNetConfig, skips: list[int]) -> tuple[nn.ModuleList, nn.ModuleList]:
        skips = list(skips)
        width = config.channels[-1]
        up, upsample = nn.ModuleList(), nn.ModuleList()
        for level, outputs in reversed(list(enumerate(config.channels))):
            stage = nn.ModuleList()
            for _ in range(config.blocks + 1):
                stage.append(Block(config, level, width + skips.pop(), outputs))
                width = outputs
            up.append(stage)
            if level > 0:
                upsample.append(nn.Conv2d(width, width, 3, padding=1))
        return up, upsample

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """One prediction a row."""
        position = 25.0 * (20.0 - log_snr)
        embedding = self.embed(sinusoid(position, self.config.channels[0]))
        if self.classes is not None:
            label = torch.where(label < 0, self.config.classes, label)
            embedding = embedding + self.classes(label)
        dtype = self.norm.weight.dtype
        projected = self.levels(F.silu(embedding)).to(dtype)[:, :, None, None]
        levels = iter(projected.split(self.widths, dim=1))
        # Blocks take their projections in the order of `modules()`: down, middle, up.
        h = self.stem(u).to(dtype)
        skips = [h]
        for level, stage in enumerate(self.down.children()):
            for block in stage.children():
                h = block(h, next(levels))
                skips.append(h)
            if level < len(self.downsample):
                h = self.downsample[level](h)
                skips.append(h)
        before, after = self.middle
        h = before(h, next(levels))
        h = after(self.middle_attention(h), next(levels))
        for level, stage in enumerate(self.up.children()):
            for block in stage.children():
                h = block(torch.cat((h, skips.pop()), dim=1), next(levels))
            if level < len(self.upsample):
                h = self.upsample[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        out: Tensor = self.head(silu(self.norm(h)).to(u.dtype))
        return out
