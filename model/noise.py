"""Counter-based Gaussian noise, keyed by (seed, stream, call, element).

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", §3.3) and
Box–Muller. A value depends on its key alone: not on the device, on the order in which rows are
drawn, or on what they are batched with. 32-bit words are kept in int64 tensors.
"""

from __future__ import annotations

import math
from enum import IntEnum
from functools import cache

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Stream(IntEnum):
    """What noise is for. Two streams of one seed are independent."""

    PRIOR = 0
    STEP = 1
    PROBE = 2
    DEQUANTIZATION = 3
    IMAGE_SEED = 4
    # Of training, where a key is (seed, place in the batch) and a call is a step.
    EPS = 5
    TIME = 6
    LABEL = 7
    FLIP = 8
    DROPOUT = 9
    ORDER = 10


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Multipliers ``(2,)`` and what a round adds to the key ``(rounds, 2)``, kept on a device."""
    weyl = torch.tensor(_WEYL, device=device)
    rounds = torch.arange(_ROUNDS, device=device)
    return torch.tensor(_MULTIPLIERS, device=device), rounds[:, None] * weyl


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Four 32-bit words for each counter: ``(4, …)`` int64 in and out, of a key ``(2, …)``.

    The key broadcasts along the counter, with as many dimensions. Words are below 2³².
    """
    multipliers, weyl = (
        values.reshape(*values.shape, *[1] * (key.ndim - 1)) for values in _constants(key.device)
    )
    even, odd = counter[0::2], counter[1::2]
    for round_key in (key + weyl).bitwise_and_(_MASK):
        # The product of two 32-bit words wraps in int64; its bits are the right ones all the same.
        product = (even * multipliers).flip(0)
        even = (product >> 32).bitwise_xor_(odd).bitwise_xor_(round_key).bitwise_and_(_MASK)
        odd = product  # whose upper half the masks take away
    return torch.stack((even, odd), dim=1).flatten(0, 1).bitwise_and_(_MASK)


def _words(seeds: Tensor, stream: Stream, call: int | Tensor, elements: int) -> Tensor:
    """(rows, 4·ceil(elements/4)) words; seeds (rows,) int64, call an integer or (rows,) int64."""
    blocks = torch.arange(-(-elements // 4), dtype=torch.int64, device=seeds.device)
    calls = torch.as_tensor(call, dtype=torch.int64, device=seeds.device).reshape(-1, 1)
    counter = blocks.new_zeros(4, len(seeds), len(blocks))
    counter[0], counter[1], counter[2] = blocks, calls & _MASK, int(stream)
    key = torch.stack((seeds, seeds >> 32)).bitwise_and_(_MASK)
    words = philox(counter, key.unsqueeze(-1))
    return words.permute(1, 2, 0).reshape(len(seeds), -1)


def uniform(seeds: Tensor, stream: Stream, call: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform float64 values in (0, 1), ``(rows, *shape)``; seeds ``(rows,)`` int64."""
    elements = math.prod(shape)
    words = _words(seeds, stream, call, elements)[:, :elements]
    return ((words.double() + 0.5) * 2.0**-32).reshape(-1, *shape)


def normal(seeds: Tensor, stream: Stream, call: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float64 values, ``(rows, *shape)``; seeds ``(rows,)`` int64."""
    elements = math.prod(shape)
    unit = _words(seeds, stream, call, elements).double().add_(0.5).mul_(2.0**-32)
    radius = unit[:, 0::2].log().mul_(-2.0).sqrt_()
    turn = unit[:, 1::2] * (2.0 * math.pi)
    pairs = torch.stack((turn.cos().mul_(radius), turn.sin().mul_(radius)), dim=-1)
    return pairs.reshape(len(seeds), -1)[:, :elements].reshape(-1, *shape)


def rademacher(seeds: Tensor, stream: Stream, call: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Values −1 or +1 with equal chance, float64 ``(rows, *shape)``; seeds ``(rows,)`` int64."""
    elements = math.prod(shape)
    words = _words(seeds, stream, call, elements)[:, :elements]
    return ((words >> 31) * 2 - 1).double().reshape(-1, *shape)


def derived_seeds(seeds: Tensor, stream: Stream, call: int) -> list[int]:
    """Seeds of 63 bits, for torch's own generators; seeds ``(rows,)`` int64."""
    words = _words(seeds, stream, call, 2)
    return [high >> 1 << 32 | low for high, low in words[:, :2].tolist()]


def image_seeds(seed: int, count: int) -> list[int]:
    """The seeds of images 0 … count−1 of a request with this seed.

    53 bits each, so that JSON carries them exactly and a request with ``seeds`` can ask for one
    image again.
    """
    calls = torch.arange(count, dtype=torch.int64)
    words = _words(torch.full_like(calls, seed), Stream.IMAGE_SEED, calls, 2)
    return [int(high) << 21 | int(low) >> 11 for high, low in words[:, :2].tolist()]
