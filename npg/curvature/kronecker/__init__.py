"""Kronecker-factored curvature: layers, what they see, and the moments of it."""

from npg.curvature.kronecker.blocks import Block, FreeBlock, MatrixBlock, Sharing, VectorBlock
from npg.curvature.kronecker.estimator import FisherKind, KroneckerFisher, Reduction

__all__ = [
    "Block",
    "FisherKind",
    "FreeBlock",
    "KroneckerFisher",
    "MatrixBlock",
    "Reduction",
    "Sharing",
    "VectorBlock",
]
