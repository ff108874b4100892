"""Inverse roots of symmetric positive semi-definite matrices."""

import torch
from torch import Tensor

from npg.linalg.inverses import Ladder, positive_eigenbasis


def inverse_root(matrix: Tensor, order: float, epsilon: float) -> tuple[Tensor | None, Ladder]:
    """(M + ε I)^(−1/p) by an eigendecomposition, climbing the ladder of :mod:`inverses`.

    Rounding may leave eigenvalues below 0: these count as 0.

    Args:
        matrix: M [d, d], or [k, d, d].
        order: p, above 0.
        epsilon: ε ≥ 0; with 0 the matrix must be positive definite.

    Returns:
        The root, symmetric, in the matrix' dtype; None where no rung held, or it is not finite.
        And how it was found.
    """
    found, report = positive_eigenbasis(matrix)
    if found is None:
        return None, report
    values, vectors = found
    powers = (values + epsilon).pow(-1 / order)
    root = (vectors * powers.unsqueeze(-2)) @ vectors.mT
    if root.device.type != "meta" and not bool(torch.isfinite(root.sum())):
        report.failed = True
        return None, report
    return root, report
