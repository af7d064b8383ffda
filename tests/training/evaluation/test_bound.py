import pytest
import torch

from model.analytic import GaussianMixture, GaussianMixtureConfig
from model.checkpoint import Checkpoint, Description
from model.data import DataSpec
from model.noise import Stream, normal
from model.process import VPLinear
from training.data import Dataset
from training.evaluation.bound import bound


def test_the_loss_by_noise_level_is_the_closed_form_of_a_gaussian() -> None:
    """For x_0 ~ N(0, v I) the best ε̂ leaves E (ε − ε̂)² = cos²φ v/(cos²φ v + sin²φ)."""
    v, count = 0.25, 400
    config = GaussianMixtureConfig(components=1, shape=(1, 4, 4), variance=v)
    spec = DataSpec(shape=(1, 4, 4), levels=4096, low=-4.0, high=4.0)
    description = Description(architecture=config, process=VPLinear(t_min=1e-3), data=spec)
    model = Checkpoint(description=description, network=GaussianMixture(config), digest="")
    x = v**0.5 * normal(torch.arange(count), Stream.PRIOR, 7, spec.shape)
    curve = bound(model, spec.to_levels(x).round(), draws=16).curve
    cos2 = torch.sigmoid(torch.tensor(curve.log_snr, dtype=torch.float64))
    closed = cos2 * v / (cos2 * v + 1 - cos2)
    off = (torch.tensor(curve.loss) - closed).abs() / torch.tensor(curve.standard_error)
    assert float(off.max()) < 4.5
    assert curve.log_snr == sorted(curve.log_snr)


def test_the_terms_add_up_and_bound_the_likelihood_from_above(
    checkpoint: Checkpoint, network: GaussianMixture, dataset: Dataset
) -> None:
    levels = dataset.held_out.levels[:100]
    found = bound(checkpoint, levels)
    parts = found.prior.value + found.diffusion.value + found.recon.value
    assert found.total.value == pytest.approx(parts, rel=1e-12)
    spec, process = checkpoint.description.data, checkpoint.description.process
    truth = network.log_prob(process, spec.to_model(levels), process.t_min)
    exact = float(spec.bits_per_dim(truth).mean())
    assert found.total.value > exact - 4 * found.total.standard_error
    assert found.images == len(levels)


def test_labels_make_it_the_bound_given_the_class(checkpoint: Checkpoint, dataset: Dataset) -> None:
    levels, labels = dataset.held_out.levels[:50], dataset.held_out.labels[:50]
    plain, given = (bound(checkpoint, levels, asked, draws=16) for asked in (None, labels))
    assert given.total.value < plain.total.value


def test_a_single_image_is_refused(checkpoint: Checkpoint, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="at least 2 images are needed"):
        bound(checkpoint, dataset.held_out.levels[:1])
