"""Pure tensor numerics: no module of this package knows what a model is."""

from npg.linalg.conjugate_gradient import CGResult, cg
from npg.linalg.flat import add_, assign_, flatten, split

__all__ = ["CGResult", "add_", "assign_", "cg", "flatten", "split"]
