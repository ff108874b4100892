"""A curvature matrix of a batch of which every rank holds a part."""

from torch import Tensor

from npg import ranks
from npg.curvature.matrix import CurvatureMatrix


class MeanOverRanks(CurvatureMatrix):
    """The mean over the ranks of ``torch.distributed`` of the matrix that each measured.

    A mean over samples is the mean of the ranks' means, so that products of the whole batch's
    matrix cost this rank its own part and the sum of P numbers over the ranks. Every rank has to
    ask for them together, with the same vector.

    Args:
        matrix: C of this rank's part of the batch, over the same parameters on every rank.
    """

    def __init__(self, matrix: CurvatureMatrix) -> None:
        self.matrix = matrix
        self.names, self.parameters = matrix.names, matrix.parameters

    def matvec(self, vector: Tensor) -> Tensor:
        """Returns the mean of C v."""
        product = self.matrix.matvec(vector).contiguous()
        ranks.average_([product])
        return product

    def to_dense(self) -> Tensor:
        """Forms the matrix [P, P]: each rank its own, then the mean."""
        dense = self.matrix.to_dense()
        ranks.average_([dense])
        return dense
