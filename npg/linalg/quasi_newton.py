"""Quasi-Newton updates: what a step s and the gradient's change y tell of a matrix.

B stands for the direct form, which is to satisfy B s = y, and H for the inverse one, H y = s. Every
update is a few outer products, C + Σᵢ cᵢ uᵢuᵢᵀ, and exchanging s and y turns the one form into the
other: the direct DFP update is BFGS's inverse one. All functions take leading dimensions, a batch
of layers for instance, and return new tensors.

Reference: Nocedal and Wright, "Numerical Optimization", 2nd edition, 2006, chapters 6 and 7.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# SR1 leaves out a pair whose denominator is this small a part of what it could be.
SR1_SKIP = 1e-8


@dataclass(frozen=True)
class OuterProducts:
    """Σᵢ cᵢ uᵢuᵢᵀ.

    Attributes:
        vectors: u [..., k, n], in rows.
        weights: c [..., k].
    """

    vectors: Tensor
    weights: Tensor

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Multiplies a vector [..., n]."""
        inner = (self.vectors @ vector.unsqueeze(-1)).squeeze(-1)
        return ((self.weights * inner).unsqueeze(-2) @ self.vectors).squeeze(-2)

    def add_(self, matrix: Tensor) -> Tensor:
        """Adds itself to a matrix [..., n, n] in one pass, in place; returns it."""
        # √|c| goes to both sides of a product: a symmetric matrix stays symmetric, bit for bit
        # where the processor's kernel takes all entries of a product alike.
        rows = self.vectors * self.weights.abs().sqrt().unsqueeze(-1)
        columns = (rows * self.weights.sign().unsqueeze(-1)).mT
        if matrix.ndim == 2:
            return matrix.addmm_(columns, rows)
        return matrix.add_(columns @ rows)


def bfgs_inverse_products(s: Tensor, y: Tensor, product: Tensor) -> OuterProducts:
    """What BFGS adds to an inverse H, from H y.

    (I − s yᵀ/sᵀy) H (I − y sᵀ/sᵀy) + s sᵀ/sᵀy − H = s wᵀ + w sᵀ with
    w = (1 + yᵀHy/sᵀy)/(2 sᵀy) s − H y/sᵀy.

    Args:
        s: Step [..., n].
        y: Change of the gradient [..., n], sᵀy > 0.
        product: H y [..., n].

    Returns:
        Two outer products, of s and w at the same length, so that neither loses the other's digits.
    """
    inner = _dot(s, y)
    w = s * ((1 + _dot(y, product) / inner) / (2 * inner)) - product / inner
    ratio = (_norm(w) / _norm(s)).sqrt()
    ratio = torch.where(ratio > 0, ratio, 1.0)
    s, w = s * ratio, w / ratio
    vectors = torch.stack([s + w, s - w], dim=-2)
    return OuterProducts(vectors, vectors.new_tensor([0.5, -0.5]).expand(vectors.shape[:-1]))


def dfp_inverse_products(s: Tensor, y: Tensor, product: Tensor) -> OuterProducts:
    """What DFP adds to an inverse H, from H y: s sᵀ/sᵀy − Hy yᵀH/yᵀHy.

    Args:
        s: Step [..., n].
        y: Change of the gradient [..., n], sᵀy > 0.
        product: H y [..., n].

    Returns:
        Two outer products.
    """
    weights = torch.cat([1 / _dot(s, y), -1 / _dot(y, product)], dim=-1)
    return OuterProducts(torch.stack([s, product], dim=-2), weights)


def sr1_inverse_products(s: Tensor, y: Tensor, product: Tensor) -> OuterProducts:
    """What the symmetric rank-one formula adds to an inverse H, from H y.

    With r = s − H y it is r rᵀ/rᵀy, and nothing where |rᵀy| < 10⁻⁸ ‖r‖ ‖y‖.

    Args:
        s: Step [..., n].
        y: Change of the gradient [..., n].
        product: H y [..., n].

    Returns:
        One outer product.
    """
    rest = s - product
    inner = _dot(rest, y)
    counts = inner.abs() > SR1_SKIP * _norm(rest) * _norm(y)
    weights = torch.where(counts, 1 / torch.where(counts, inner, 1.0), 0.0)
    return OuterProducts(rest.unsqueeze(-2), weights)


def bfgs_inverse(inverse: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """BFGS's update of an inverse H [..., n, n], which sᵀy > 0 keeps positive definite."""
    return bfgs_inverse_products(s, y, _times(inverse, y)).add_(inverse.clone())


def dfp_inverse(inverse: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """DFP's update of an inverse H [..., n, n], which sᵀy > 0 keeps positive definite."""
    return dfp_inverse_products(s, y, _times(inverse, y)).add_(inverse.clone())


def sr1_inverse(inverse: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """The symmetric rank-one update of an inverse H [..., n, n], by Sherman and Morrison."""
    return sr1_inverse_products(s, y, _times(inverse, y)).add_(inverse.clone())


def bfgs(matrix: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """BFGS's update of a direct B [..., n, n]: y yᵀ/sᵀy − Bs sᵀB/sᵀBs is added."""
    return dfp_inverse(matrix, y, s)


def dfp(matrix: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """DFP's update of a direct B [..., n, n]."""
    return bfgs_inverse(matrix, y, s)


def sr1(matrix: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """The symmetric rank-one update of a direct B [..., n, n]."""
    return sr1_inverse(matrix, y, s)


def powell_damped(s: Tensor, y: Tensor, product: Tensor, share: float = 0.2) -> Tensor:
    """Moves s towards H y until sᵀy ≥ μ yᵀHy, which keeps H positive definite.

    s̃ = θ s + (1 − θ) H y, θ = (1 − μ) yᵀHy/(yᵀHy − sᵀy) where sᵀy is smaller than that, else 1.
    With s and y exchanged and B s instead of H y it damps y, as Powell did.

    Args:
        s: Step [..., n].
        y: Change of the gradient [..., n].
        product: H y [..., n], H positive definite.
        share: μ in (0, 1). High values keep to the old H, low ones let the new pair in.

    Returns:
        s̃ [..., n]; s itself where nothing is to be done.

    Reference:
        Powell, "Algorithms for nonlinear constraints that use Lagrangian functions", 1978.
    """
    inner, quadratic = _dot(s, y), _dot(y, product)
    needed = inner < share * quadratic
    mixing = (1 - share) * quadratic / torch.where(needed, quadratic - inner, 1.0)
    return torch.where(needed, mixing * s + (1 - mixing) * product, s)


def curvature_damped(s: Tensor, y: Tensor, least: float | Tensor) -> Tensor:
    """Moves y towards s until sᵀy ≥ ε sᵀs, which bounds H's eigenvalues from above.

    ỹ = θ y + (1 − θ) s, θ = (1 − ε) sᵀs/(sᵀs − sᵀy) where sᵀy is smaller than that, else 1.

    Args:
        s: Step [..., n].
        y: Change of the gradient [..., n].
        least: ε in (0, 1), the least curvature that is believed.

    Returns:
        ỹ [..., n]; y itself where nothing is to be done.

    Reference:
        Goldfarb, Ren and Bahamou, "Practical quasi-Newton methods for training deep neural
        networks", 2020, section 4: the second stage of their double damping.
    """
    inner, square = _dot(s, y), _dot(s, s)
    needed = inner < least * square
    mixing = (1 - least) * square / torch.where(needed, square - inner, 1.0)
    return torch.where(needed, mixing * y + (1 - mixing) * s, y)


def two_loop(
    vector: Tensor,
    steps: Sequence[Tensor],
    changes: Sequence[Tensor],
    scale: float | Tensor = 1.0,
    inner: Sequence[Tensor] | None = None,
) -> Tensor:
    """H v, with H the BFGS updates of ``scale`` · I by pairs, oldest first.

    Args:
        vector: v [..., n].
        steps: s of every pair, [..., n] each.
        changes: y of every pair, with sᵀy > 0.
        scale: What to begin with; sᵀy/yᵀy of the newest pair has the curvature's size. A number,
            or [..., 1].
        inner: sᵀy of every pair, [..., 1] each, where they are known. Default: computed.

    Returns:
        H v [..., n], a new tensor; 4 m n operations for m pairs.
    """
    if inner is None:
        inner = [_dot(s, y) for s, y in zip(steps, changes, strict=True)]
    pairs = list(zip(steps, changes, inner, strict=True))
    weights = []
    result = vector
    for s, y, sy in reversed(pairs):
        weights.append(_dot(s, result) / sy)
        result = torch.addcmul(result, weights[-1], y, value=-1)
    result = result * scale
    for (s, y, sy), weight in zip(pairs, reversed(weights), strict=True):
        result = torch.addcmul(result, weight - _dot(y, result) / sy, s)
    return result


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products [..., 1]."""
    if a.ndim == b.ndim == 1:  # without the product's memory
        return torch.dot(a, b).unsqueeze(0)
    return (a * b).sum(-1, keepdim=True)


def _norm(a: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    return norm
