"""The mathematics of Fokker: processes, networks, samplers, the probability-flow ODE, likelihood.

Every forward process here is affine Gaussian, ``x_t = α(t) x_0 + σ(t) ε``; time runs from data
(small t) to noise (large t). Everything a caller computes with is float64; a network may run in
float32. Nothing here knows of HTTP, jobs or workers.
"""
