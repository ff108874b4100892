"""BFGS's inverse from pairs, for many vectors at once: matrix products instead of a recursion."""

import torch
from torch import Tensor


def compact_bfgs(columns: Tensor, steps: Tensor, changes: Tensor, start: Tensor) -> Tensor:
    """H X, with H the BFGS updates of a diagonal H₀ by pairs, oldest first.

    With S and Y the pairs in columns, R the upper triangle of SᵀY, D its diagonal, P = R⁻¹SᵀX:

        H X = H₀ X + S R⁻ᵀ (D P + YᵀH₀Y P − YᵀH₀X) − H₀ Y P

    It is what :func:`npg.linalg.quasi_newton.two_loop` gives for every column.

    Args:
        columns: X [..., n, k].
        steps: s of every pair [..., m, n], in rows.
        changes: y of every pair [..., m, n], with sᵀy > 0.
        start: Diagonal of H₀ [..., n], positive.

    Returns:
        H X [..., n, k], a new tensor; about 8 m n k operations.

    Reference:
        Byrd, Nocedal and Schnabel, "Representations of quasi-Newton matrices and their use in
        limited memory methods", 1994, theorem 2.2.
    """
    scale = start.unsqueeze(-1)
    scaled = scale * columns
    if not steps.shape[-2]:
        return scaled
    # The triangle may be badly conditioned where pairs are alike, and it is small.
    s, y = steps.double(), changes.double()
    inner = s @ y.mT
    triangle, diagonal = inner.triu(), inner.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    h_y = scale.double() * y.mT
    p = torch.linalg.solve_triangular(triangle, (steps @ columns).double(), upper=True)
    middle = diagonal * p + (y @ h_y) @ p - (changes @ scaled).double()
    q = torch.linalg.solve_triangular(triangle.mT, middle, upper=False)
    correction = steps.mT @ q.to(columns.dtype) - scale * (changes.mT @ p.to(columns.dtype))
    result: Tensor = scaled + correction
    return result
