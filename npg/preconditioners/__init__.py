"""Curvature made cheap to apply to a gradient: (C + λI)⁻¹ g."""

from npg.preconditioners.implicit import ConjugateGradientInverse, DenseInverse, Inverse, Solution

__all__ = ["ConjugateGradientInverse", "DenseInverse", "Inverse", "Solution"]
