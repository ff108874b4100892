"""Random displacements of parameters, and what to make of their objectives: pure numerics."""

from npg.sampling.displaced import Displaced
from npg.sampling.importance import (
    Mixture,
    effective_sample_size,
    normalised_weights,
    tempered,
)
from npg.sampling.noise import ReplayedNoise
from npg.sampling.shaping import SHAPINGS, Shaping, shaped

__all__ = [
    "SHAPINGS",
    "Displaced",
    "Mixture",
    "ReplayedNoise",
    "Shaping",
    "effective_sample_size",
    "normalised_weights",
    "shaped",
    "tempered",
]
