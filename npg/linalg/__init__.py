"""Pure tensor numerics: no module of this package knows what a model is."""

from npg.linalg.conjugate_gradient import CGResult, cg
from npg.linalg.flat import Layout, add_, assign_, empty_flat, flatten, split
from npg.linalg.kronecker import (
    KroneckerSolver,
    factored_damping,
    simultaneous_diagonalisation,
    symmetrised,
)

__all__ = [
    "CGResult",
    "KroneckerSolver",
    "Layout",
    "add_",
    "assign_",
    "cg",
    "empty_flat",
    "factored_damping",
    "flatten",
    "simultaneous_diagonalisation",
    "split",
    "symmetrised",
]
