"""Self-normalised importance weights, in log space and float64."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def normalised_weights(log_weights: Tensor) -> Tensor:
    """Weights that sum to one.

    Args:
        log_weights: [n], up to a constant; −inf has no weight. At least one must be finite.

    Returns:
        [n].
    """
    return torch.softmax(log_weights.double(), dim=0)


def tempered(objectives: Tensor, temperature: float) -> Tensor:
    """Logarithm of exp(−(l − min l) / α), which no constant that is added to l changes.

    Args:
        objectives: l [n], to be minimised. What is not finite gets −inf.
        temperature: α.

    Returns:
        [n] in float64.
    """
    values = objectives.double()
    finite = torch.isfinite(values)
    if temperature == math.inf:  # by which differences that overflow cannot be divided
        return torch.zeros_like(values).masked_fill(~finite, -math.inf)
    least = values.masked_fill(~finite, math.inf).min()
    return (-(values - least) / temperature).masked_fill(~finite, -math.inf)


def effective_sample_size(weights: Tensor) -> float:
    """1 / Σ wᵢ² of weights that sum to one.

    Args:
        weights: [n].

    Returns:
        From 1, where one sample decides, to n, where all count alike.
    """
    return 1.0 / float(weights.square().sum())


@dataclass(frozen=True)
class Mixture:
    """log q of q = λ N(0, σ²) + (1 − λ) N(μ, σ²), σ per coordinate, for draws from it.

    A draw is Δ = s σ ε, or μ + s σ ε, ε standard normal and s a sign. Constants that all draws
    share are left out. Nothing is exponentiated, so that nothing underflows in many dimensions.

    Attributes:
        exploration: λ.
        mean_square: ‖μ/σ‖².
    """

    exploration: float
    mean_square: float

    def log_density(self, square: float, product: float, *, guided: bool) -> float:
        """Computes log q(Δ), up to a constant.

        Args:
            square: ‖ε‖².
            product: ⟨s ε, μ/σ⟩.
            guided: Whether Δ was drawn around μ.

        Returns:
            The logarithm.
        """
        # ‖Δ/σ‖² and ‖(Δ − μ)/σ‖².
        around_zero = square + (2 * product + self.mean_square if guided else 0.0)
        around_mean = square + (0.0 if guided else self.mean_square - 2 * product)
        terms = [
            math.log(share) - distance / 2
            for share, distance in (
                (self.exploration, around_zero),
                (1 - self.exploration, around_mean),
            )
            if share > 0
        ]
        largest = max(terms)
        return largest + math.log(sum(math.exp(term - largest) for term in terms))
