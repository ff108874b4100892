"""The candidates of a step of guided search."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from npg.sampling import Displaced, Mixture, ReplayedNoise

Scale = Literal["tensor", "global", "absolute"]


@dataclass
class Candidate:
    """One displacement that was tried.

    Attributes:
        block: Of the noise.
        sign: Of the noise.
        guided: Whether it is around −g instead of 0.
        objective: What was found there.
        log_proposal: log q(Δ), up to a constant; 0 where nobody asks.
    """

    block: int
    sign: float
    guided: bool
    objective: float
    log_proposal: float


class GuidedCandidates:
    """Displacements around 0 or around −g, tried where the parameters are.

    Args:
        displaced: The parameters.
        centre: −g, [P]; overwritten by :meth:`minus_mean_`.
        generator: Draws the noise.
        sigma: Deviation of the noise, in units of ``scale``.
        scale: Mean |g| of each tensor, of all, or 1.
        exploration: λ, for log q of the candidates. Default: nobody asks for it.
    """

    def __init__(
        self,
        displaced: Displaced,
        centre: Tensor,
        generator: torch.Generator,
        *,
        sigma: float,
        scale: Scale,
        exploration: float | None,
    ) -> None:
        self.displaced = displaced
        self.centre = centre
        self.noise = ReplayedNoise(len(centre), centre, generator)
        sizes = torch.tensor([t.numel() for t in displaced.tensors], dtype=torch.float64)
        if scale == "absolute":
            scales = torch.ones_like(sizes)
        else:
            scales = torch.stack(
                [torch.linalg.vector_norm(centre[p.span], 1) for p in displaced.whole()]
            ).to("cpu", torch.float64)
            scales = scales / sizes if scale == "tensor" else scales.sum() / sizes.sum()
        self.sigmas: list[float] = (sigma * scales.expand(len(sizes))).tolist()
        # Of the parameters, the root of the mean σ².
        self.sigma = math.sqrt(
            sum(s * s * n for s, n in zip(self.sigmas, sizes.tolist(), strict=True)) / sizes.sum()
        )
        self.mixture: Mixture | None = None
        if exploration is not None:
            self.mixture = Mixture(exploration, self._mean_square())

    def _mean_square(self) -> float:
        """‖g/σ‖², over tensors that have noise; in double precision, a chunk at a time."""
        total = torch.zeros((), dtype=torch.float64, device=self.centre.device)
        for first in range(0, len(self.centre), self.noise.chunk):
            for tensor, _, span in self.displaced.pieces(first, self.noise.chunk):
                if self.sigmas[tensor]:
                    scaled = self.centre[span].double() / self.sigmas[tensor]
                    total += scaled @ scaled
        return float(total)

    def tried(self, guided: bool, evaluate: Callable[[], float], *, pair: bool) -> list[Candidate]:
        """Tries a candidate, or the two of a pair.

        Args:
            guided: Whether around −g.
            evaluate: The objective where the parameters are.
            pair: Whether to try the noise with both signs.

        Returns:
            What was found.
        """
        block = len(self.noise.blocks)
        # ‖ε‖² and ⟨ε, μ/σ⟩.
        sums = torch.zeros(2, dtype=torch.float64, device=self.centre.device)
        for first, noise in self.noise.row():
            for tensor, place, span in self.displaced.pieces(first, len(noise)):
                sigma, part = self.sigmas[tensor], noise[span.start - first : span.stop - first]
                torch.add(self.displaced.start[span], part, alpha=sigma, out=place)
                if guided:
                    place += self.centre[span]
                if self.mixture and sigma:
                    part = part.double()
                    sums[0] += part @ part
                    sums[1] += part @ self.centre[span].double() / sigma
        self.displaced.written()
        square, product = sums.tolist() if self.mixture else (0.0, 0.0)
        found = [self._candidate(block, 1.0, guided, evaluate(), square, product)]
        if pair:
            self.displaced.reflect(self.centre if guided else None)
            found.append(self._candidate(block, -1.0, guided, evaluate(), square, -product))
        return found

    def _candidate(
        self, block: int, sign: float, guided: bool, objective: float, square: float, product: float
    ) -> Candidate:
        log_proposal = 0.0
        if self.mixture:
            log_proposal = self.mixture.log_density(square, product, guided=guided)
        return Candidate(block, sign, guided, objective, log_proposal)

    def minus_mean_(self, tried: list[Candidate], weights: list[float]) -> Tensor:
        """−Σᵢ wᵢ Δᵢ [P], in the place of the centre."""
        mean = self.centre
        mean *= -sum(w for c, w in zip(tried, weights, strict=True) if c.guided)
        signed = [0.0] * len(self.noise.blocks)
        for candidate, weight in zip(tried, weights, strict=True):
            signed[candidate.block] += candidate.sign * weight
        for block, weight in enumerate(signed):
            if not weight:
                continue
            for first, rows in self.noise.again(block):
                for tensor, _, span in self.displaced.pieces(first, rows.shape[1]):
                    part = rows[0, span.start - first : span.stop - first]
                    mean[span].add_(part, alpha=-weight * self.sigmas[tensor])
        return mean
