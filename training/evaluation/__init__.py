"""How good a checkpoint is: likelihood, bound, distances of samples, what was memorised."""

from training.evaluation.likelihood import BitsPerDim, held_out_bits_per_dim
from training.evaluation.sampling import class_accuracy, samples

__all__ = ["BitsPerDim", "class_accuracy", "held_out_bits_per_dim", "samples"]
