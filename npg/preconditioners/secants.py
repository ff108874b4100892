"""Inverses that follow secant pairs: BFGS's, as a matrix or by its last pairs."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from npg.linalg.compact_bfgs import compact_bfgs
from npg.linalg.quasi_newton import OuterProducts, bfgs_inverse_products

# A pair whose curvature sᵀy/‖s‖² is this small a part of the gradient says nothing.
LEAST_CURVATURE = 1e-4


class Secants(ABC):
    """H [(g,) n, n], positive definite, with H y = s for the newest pair."""

    @abstractmethod
    def times(self, columns: Tensor) -> Tensor:
        """H X for X [(g,) n, k]."""

    @abstractmethod
    def update(self, s: Tensor, y: Tensor, scale: Tensor) -> None:
        """Lets a pair [(g,) n] in, where sᵀy > 10⁻⁴ ‖s‖² ‖scale‖ and all of it is finite."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Tensors that tell all."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state` gave."""

    @abstractmethod
    def fits(self, state: dict[str, Tensor]) -> bool:
        """Whether :meth:`load` could."""

    def product(self, vector: Tensor) -> Tensor:
        """H v for v [(g,) n]."""
        return self.times(vector.unsqueeze(-1)).squeeze(-1)


class DenseSecants(Secants):
    """H as a matrix, which every pair changes in place by a product of rank two.

    Args:
        matrix: What to begin with [(g,) n, n], symmetric and positive definite; it is kept.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def times(self, columns: Tensor) -> Tensor:
        """H X for X [(g,) n, k]."""
        return self.matrix @ columns

    def update(self, s: Tensor, y: Tensor, scale: Tensor) -> None:
        """Lets a pair in; which groups do is not read from the device."""
        found = bfgs_inverse_products(s, y, self.product(y))
        good = _telling(s, y, scale) & torch.isfinite(found.vectors).all(-1).all(-1, keepdim=True)
        vectors = torch.where(good.unsqueeze(-1), found.vectors, 0.0)
        OuterProducts(vectors, found.weights).add_(self.matrix)

    def state(self) -> dict[str, Tensor]:
        """The matrix."""
        return {"matrix": self.matrix}

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes over a copy."""
        self.matrix = state["matrix"].to(self.matrix.device, copy=True)

    def fits(self, state: dict[str, Tensor]) -> bool:
        """Whether it is a matrix of this size."""
        return set(state) == {"matrix"} and state["matrix"].shape == self.matrix.shape


class LimitedSecants(Secants):
    """H by the last pairs and a diagonal to begin with.

    Args:
        start: The diagonal [(g,) n], positive.
        memory: Pairs that are kept. High values take longer and remember more.
    """

    def __init__(self, start: Tensor, memory: int) -> None:
        self.start = start
        self.memory = memory
        self.steps = self.changes = start.unsqueeze(-2)[..., :0, :]

    def times(self, columns: Tensor) -> Tensor:
        """H X for X [(g,) n, k]."""
        return compact_bfgs(columns, self.steps, self.changes, self.start)

    def update(self, s: Tensor, y: Tensor, scale: Tensor) -> None:
        """Lets a pair in for the oldest, if every group may have it; reads one number."""
        if bool(_telling(s, y, scale).all()):
            self.steps = self._appended(self.steps, s)
            self.changes = self._appended(self.changes, y)

    def _appended(self, kept: Tensor, newest: Tensor) -> Tensor:
        first = max(kept.shape[-2] + 1 - self.memory, 0)
        return torch.cat([kept[..., first:, :], newest.unsqueeze(-2)], -2)

    def state(self) -> dict[str, Tensor]:
        """The diagonal and the pairs."""
        return {"start": self.start, "steps": self.steps, "changes": self.changes}

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes over copies."""
        device = self.start.device
        self.start = state["start"].to(device, copy=True)
        self.steps = state["steps"].to(device, copy=True)
        self.changes = state["changes"].to(device, copy=True)

    def fits(self, state: dict[str, Tensor]) -> bool:
        """Whether they are of this size, and no more than are kept here."""
        if set(state) != {"start", "steps", "changes"} or state["start"].shape != self.start.shape:
            return False
        *groups, pairs, size = state["steps"].shape
        return pairs <= self.memory and (*groups, size) == tuple(self.start.shape)


def _telling(s: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Which pairs [(g,) n] have curvature that counts, [(g,) 1]; a number that is not none."""
    curvature = (s * y).sum(-1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(scale, dim=-1, keepdim=True)
    least = LEAST_CURVATURE * s.square().sum(-1, keepdim=True) * length
    return (curvature > least) & torch.isfinite(curvature) & torch.isfinite(y.sum(-1, keepdim=True))
