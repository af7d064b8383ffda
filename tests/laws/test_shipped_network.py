"""The shipped float32 network: an image's answers do not depend on its company, to the bit."""

from pathlib import Path

import torch
from torch import Tensor

import model
from model import checkpoint
from model.likelihood import Hutchinson, LogLikelihood, dequantize, log_likelihood
from model.pf_ode import Adaptive
from model.query import Condition, run
from training.data import digits

SHIPPED = checkpoint.load(Path(model.__file__).parent / "zoo" / "digits.safetensors")
DENOISER, PROCESS = SHIPPED.denoiser(), SHIPPED.description.process
SPEC = SHIPPED.description.data


def solved(x: Tensor, seeds: Tensor) -> LogLikelihood:
    solver, probe = Adaptive(tolerance=1e-2), Hutchinson(probes=1)
    return run(log_likelihood(PROCESS, x, Condition.same(len(x)), solver, probe, seeds), DENOISER)


def test_latent_and_log_p_are_the_same_alone_in_a_crowd_and_beside_an_outlier() -> None:
    seeds = torch.arange(20)  # a bucket of 16 and a part of one
    levels = digits(0.15).held_out.levels[:20]
    x = SPEC.to_model(levels, dequantize(levels, seeds))
    alone = solved(x[5:6], seeds[5:6])
    crowd = solved(x, seeds)
    beside_an_outlier = solved(torch.stack((3.0 * x[6], x[5])), seeds[[6, 5]])
    for other, row in ((crowd, 5), (beside_an_outlier, 1)):
        assert torch.equal(other.latent[row], alone.latent[0])
        assert torch.equal(other.log_likelihood[row], alone.log_likelihood[0])
        assert other.nfe[row] == alone.nfe[0]
        assert other.converged[row]
