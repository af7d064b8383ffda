"""The shipped float32 network: an image's answers do not depend on its company, to the bit."""

from pathlib import Path

import torch
from torch import Tensor

import model
from model import checkpoint
from model.likelihood import Hutchinson, LogLikelihood, log_likelihood
from model.noise import Stream, normal
from model.pf_ode import Adaptive
from model.query import Condition, run

SHIPPED = checkpoint.load(Path(model.__file__).parent / "zoo" / "digits.safetensors")
DENOISER, PROCESS = SHIPPED.denoiser(), SHIPPED.description.process
SHAPE = SHIPPED.description.data.shape


def solved(x: Tensor, seeds: Tensor) -> LogLikelihood:
    solver, probe = Adaptive(tolerance=1e-3, max_calls=100), Hutchinson(probes=1)
    return run(log_likelihood(PROCESS, x, Condition.same(len(x)), solver, probe, seeds), DENOISER)


def test_latent_and_log_p_are_the_same_alone_in_a_crowd_and_beside_an_outlier() -> None:
    x, seeds = 0.5 * normal(torch.arange(64), Stream.PRIOR, 0, SHAPE), torch.arange(64)
    alone = solved(x[5:6], seeds[5:6])
    crowd = solved(x, seeds)
    beside_an_outlier = solved(torch.stack((300.0 * x[6], x[5])), seeds[[6, 5]])
    for other, row in ((crowd, 5), (beside_an_outlier, 1)):
        assert torch.equal(other.latent[row], alone.latent[0])
        assert torch.equal(other.log_likelihood[row], alone.log_likelihood[0])
        assert other.nfe[row] == alone.nfe[0]
