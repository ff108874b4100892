"""Pure tensor numerics: no module of this package knows what a model is."""

from npg.linalg.conjugate_gradient import CGResult, cg
from npg.linalg.flat import Layout, add_, assign_, flatten, split

__all__ = ["CGResult", "Layout", "add_", "assign_", "cg", "flatten", "split"]
