"""Dropout whose masks belong to the images, not to the batch that they happen to be in.

torch draws a batch's masks from one stream: split over two processes, or resumed, an image would
get others. Here each image draws all of its masks, of every layer, from a generator of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.noise import Stream
from training.chance import Rows

_PACKED = 4  # numbers of 16 bits in one of 64


class Masked(nn.Module):
    """Multiplies by a mask that is set from outside; as it is while evaluating."""

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, C, H, W) times its mask."""
        return x * self.mask if self.training else x


class Dropout:
    """Takes the place of a network's `nn.Dropout` modules, for batches of ``rows`` images.

    shape: (C, H, W) of one image, from which the layers' own shapes are found. channels_last: how
    activations lie; masks lie alike, so the two layouts drop other values.
    """

    def __init__(
        self,
        network: nn.Module,
        rows: int,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        channels_last: bool = False,
    ) -> None:
        self._layers = _replace(network)
        if not self._layers:
            return
        dropped = round(next(iter(self._layers.values())) * 2**16)  # of 65,536 equal chances
        self._bound, self._scale = dropped - 2**15, 2**16 / (2**16 - dropped)
        shapes = _shapes(network, list(self._layers), shape, device)
        sizes = [c * h * w for c, h, w in shapes]
        elements = -(-sum(sizes) // _PACKED) * _PACKED
        self._bits = torch.empty(rows, elements // _PACKED, dtype=torch.int64, device=device)
        self._masks = torch.empty(rows, elements, device=device)
        self._generator = torch.Generator(device)
        for layer, (c, h, w), part in zip(
            self._layers,
            shapes,
            torch.split(self._masks[:, : sum(sizes)], sizes, dim=1),
            strict=True,
        ):
            if channels_last:
                layer.mask = part.view(rows, h, w, c).permute(0, 3, 1, 2)
            else:
                layer.mask = part.view(rows, c, h, w)

    def draw(self, rows: Rows) -> None:
        """Set the masks of these images, in place."""
        if not self._layers:
            return
        for bits, seed in zip(self._bits, rows.seeds(Stream.DROPOUT), strict=True):
            bits.random_(-(2**63), None, generator=self._generator.manual_seed(seed))
        # Four masks in each 64 bits: five times as fast as `bernoulli_`.
        torch.mul(self._bits.view(torch.int16) >= self._bound, self._scale, out=self._masks)


def _replace(network: nn.Module) -> dict[Masked, float]:
    """The new modules and the probabilities of the old ones, all alike in a U-Net."""
    found = {}
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Dropout) and module.p > 0.0:
                found[masked := Masked()] = module.p
                setattr(parent, name, masked)
    return found


@torch.no_grad()
def _shapes(
    network: nn.Module, layers: list[Masked], shape: tuple[int, int, int], device: torch.device
) -> list[tuple[int, int, int]]:
    """(C, H, W) of what each layer sees, by a call with one image of zeros."""
    seen: dict[nn.Module, tuple[int, int, int]] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        channels, height, width = inputs[0].shape[1:]
        seen[layer] = (channels, height, width)

    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    training = network.training
    network.eval()
    network(
        torch.zeros(1, *shape, device=device),
        torch.zeros(1, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
    )
    network.train(training)
    for hook in hooks:
        hook.remove()
    return [seen[layer] for layer in layers]
