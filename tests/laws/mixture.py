"""The analytic mixture that laws are checked on."""

import torch

from model.analytic import GaussianMixture, GaussianMixtureConfig
from model.denoiser import Denoiser
from model.noise import Stream, normal


def mixture(
    *, components: int = 5, shape: tuple[int, int, int] = (1, 8, 8), variance: float = 0.25
) -> GaussianMixture:
    """Means of standard deviation 0.5 in every coordinate."""
    network = GaussianMixture(
        GaussianMixtureConfig(components=components, shape=shape, variance=variance)
    )
    network.means.copy_(0.5 * normal(torch.arange(components), Stream.PRIOR, 1, shape))
    return network


def denoiser(network: GaussianMixture) -> Denoiser:
    return Denoiser(
        network=network, prediction="eps", dtype=torch.float64, device=torch.device("cpu")
    )


def draw(network: GaussianMixture, count: int, seed: int = 0) -> torch.Tensor:
    """Points x_0 of the mixture, (count, C, H, W) float64."""
    keys = torch.arange(count) + 10_000 * (seed + 1)
    which = torch.arange(count) % network.config.components
    noise = normal(keys, Stream.PRIOR, 0, network.config.shape)
    return network.means[which] + network.config.variance**0.5 * noise
