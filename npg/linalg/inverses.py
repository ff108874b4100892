"""Inverses and eigenbases of symmetric positive semi-definite matrices that never fail silently.

Both climb the same ladder until a rung holds: single precision, double precision, double precision
with growing jitter, and at last what the caller had before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from npg.linalg.kronecker import symmetrised

JITTERS = (0.0, 1e-8, 1e-6, 1e-4)


@dataclass
class Ladder:
    """What became of one matrix.

    Attributes:
        rung: 0 for the matrix' own precision, 1 for float64, 2 and more for jitter.
        failed: Whether no rung held.
    """

    rung: int = 0
    failed: bool = False


def positive_inverse(matrices: Tensor) -> tuple[Tensor, list[Ladder]]:
    """Inverts symmetric positive definite matrices by Cholesky factorisation.

    Args:
        matrices: [k, d, d]; only what damping left positive definite can be inverted.

    Returns:
        The inverses [k, d, d], symmetric, in the matrices' dtype, and how each was found. One that
        no rung could invert is left unspecified.
    """
    inverses, good = _cholesky_inverse(matrices)
    reports = [Ladder() for _ in range(len(matrices))]
    if matrices.device.type == "meta":
        return inverses, reports
    for i, holds in enumerate(good.tolist()):
        if not holds:
            inverses[i], reports[i] = _climb(matrices[i], _one_cholesky_inverse)
    return inverses, reports


def _cholesky_inverse(matrices: Tensor) -> tuple[Tensor, Tensor]:
    factors, info = torch.linalg.cholesky_ex(matrices)
    if info.device.type != "meta" and bool(info.any()):
        # A factorisation that broke off may have left a zero pivot, over which the inverse raises.
        unit = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
        factors = torch.where((info == 0)[..., None, None], factors, unit)
    # One matrix alone is inverted faster outside a batch of one.
    single = len(factors) == 1 and factors.ndim == 3
    inverses = torch.cholesky_inverse(factors[0] if single else factors)
    inverses = inverses.unsqueeze(0) if single else inverses
    # A tiny pivot passes the factorisation and leaves no digit in the inverse: the largest
    # entries of both bound the condition number from below.
    largest = matrices.diagonal(dim1=-2, dim2=-1).amax(-1)
    condition = largest * inverses.diagonal(dim1=-2, dim2=-1).amax(-1)
    good = (info == 0) & (condition < 1 / torch.finfo(matrices.dtype).eps)
    return inverses, good


def _one_cholesky_inverse(matrix: Tensor) -> Tensor | None:
    inverse, good = _cholesky_inverse(matrix)
    return inverse if bool(good) else None


def positive_eigenbasis(matrix: Tensor) -> tuple[tuple[Tensor, Tensor] | None, Ladder]:
    """Diagonalises a symmetric positive semi-definite matrix.

    Args:
        matrix: [d, d], or [k, d, d].

    Returns:
        Eigenvalues [d], not negative, and eigenvectors [d, d] in columns, in the matrix' dtype;
        None where no rung held; and how it was found.
    """
    found = _one_eigenbasis(symmetrised(matrix))
    if found is not None:
        return found, Ladder()
    joined, report = _climb(matrix, _joined_eigenbasis)
    if report.failed:
        return None, report
    return (joined[..., 0], joined[..., 1:]), report


def _one_eigenbasis(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    if matrix.device.type != "meta" and not bool(torch.isfinite(matrix.sum())):
        return None
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError:  # torch.linalg.LinAlgError is one
        return None
    if matrix.device.type != "meta" and not bool(torch.isfinite(vectors.sum() + values.sum())):
        return None
    return values.clamp(min=0), vectors


def _joined_eigenbasis(matrix: Tensor) -> Tensor | None:
    found = _one_eigenbasis(matrix)
    return None if found is None else torch.cat([found[0].unsqueeze(-1), found[1]], -1)


def _climb(matrix: Tensor, attempt: Callable[[Tensor], Tensor | None]) -> tuple[Tensor, Ladder]:
    """Tries the rungs above the first."""
    double = symmetrised(matrix.double())
    if not bool(torch.isfinite(double.sum())):  # LAPACK may not come back from these
        return matrix, Ladder(len(JITTERS), failed=True)
    scale = double.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    unit = torch.eye(double.shape[-1], dtype=double.dtype, device=double.device)
    for rung, jitter in enumerate(JITTERS, start=1):
        found = attempt(double + jitter * scale * unit)
        if found is not None:
            return found.to(matrix.dtype), Ladder(rung)
    return matrix, Ladder(len(JITTERS), failed=True)
