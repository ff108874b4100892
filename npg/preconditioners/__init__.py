"""Curvature made cheap to apply to a gradient: (C + λI)⁻¹ g, or an inverse root of a moment.

What is estimated while a model trains is a :class:`Preconditioner`: ``update(statistics)``,
``refresh()``, ``apply(gradients)``, ``state_dict()``.
"""

from npg.preconditioners.base import Preconditioner, TensorPreconditioner
from npg.preconditioners.chain import ChainInverse
from npg.preconditioners.chain_check import ChainCheck
from npg.preconditioners.diagonal import ClippedCurvature, MeanSquares
from npg.preconditioners.ekfac import EigenbasisInverse
from npg.preconditioners.factored import FactoredInverse
from npg.preconditioners.full_matrix import DenseRoot, WindowRoot
from npg.preconditioners.implicit import (
    DENSE_LIMIT,
    ConjugateGradientInverse,
    DenseInverse,
    Inverse,
    Solution,
)
from npg.preconditioners.kfac import KroneckerInverse
from npg.preconditioners.kronecker import KroneckerPreconditioner
from npg.preconditioners.kronecker_bfgs import KroneckerBFGS
from npg.preconditioners.shampoo import ShampooRoots
from npg.preconditioners.soap import AdamInEigenbasis
from npg.preconditioners.tridiagonal import TridiagonalInverse

__all__ = [
    "DENSE_LIMIT",
    "AdamInEigenbasis",
    "ChainCheck",
    "ChainInverse",
    "ClippedCurvature",
    "ConjugateGradientInverse",
    "DenseInverse",
    "DenseRoot",
    "EigenbasisInverse",
    "FactoredInverse",
    "Inverse",
    "KroneckerBFGS",
    "KroneckerInverse",
    "KroneckerPreconditioner",
    "MeanSquares",
    "Preconditioner",
    "ShampooRoots",
    "Solution",
    "TensorPreconditioner",
    "TridiagonalInverse",
    "WindowRoot",
]
