"""Curvature made cheap to apply to a gradient: (C + λI)⁻¹ g."""

from npg.preconditioners.chain import ChainInverse
from npg.preconditioners.chain_check import ChainCheck
from npg.preconditioners.ekfac import EigenbasisInverse
from npg.preconditioners.factored import FactoredInverse
from npg.preconditioners.implicit import (
    DENSE_LIMIT,
    ConjugateGradientInverse,
    DenseInverse,
    Inverse,
    Solution,
)
from npg.preconditioners.kfac import KroneckerInverse
from npg.preconditioners.kronecker import KroneckerPreconditioner
from npg.preconditioners.tridiagonal import TridiagonalInverse

__all__ = [
    "DENSE_LIMIT",
    "ChainCheck",
    "ChainInverse",
    "ConjugateGradientInverse",
    "DenseInverse",
    "EigenbasisInverse",
    "FactoredInverse",
    "Inverse",
    "KroneckerInverse",
    "KroneckerPreconditioner",
    "Solution",
    "TridiagonalInverse",
]
