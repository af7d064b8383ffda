"""The offline job: data, objective, loop, evaluation. Its product is a checkpoint and its card."""
