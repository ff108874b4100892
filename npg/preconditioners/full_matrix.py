"""The inverse square root of a whole second moment, of all gradients or of the last few."""

from typing import Any

import torch
from torch import Tensor

from npg.errors import ConfigurationError, NumericalError
from npg.linalg.matrix_roots import inverse_root
from npg.preconditioners.base import TensorPreconditioner

DENSE_LIMIT = 20_000
# Columns that are widened to float64 at a time.
PIECE = 2**16


class DenseRoot(TensorPreconditioner):
    """(M + ε I)^(−1/2), M = Σ g gᵀ over all gradients, formed in float64.

    Args:
        state: Where M is kept.
        epsilon: ε.
    """

    names = ("moment",)

    def __init__(self, state: dict[str, Any], epsilon: float) -> None:
        super().__init__([state])
        self.state = state
        self.epsilon = epsilon

    def update(self, statistics: list[Tensor]) -> None:
        """Lets a gradient [P] enter M.

        Raises:
            ConfigurationError: If P is above 20,000.
        """
        (gradient,) = statistics
        size = len(gradient)
        if size > DENSE_LIMIT:
            raise ConfigurationError(
                f"a dense matrix of {size} parameters is too large (limit {DENSE_LIMIT}): let "
                "memory= be the number of gradients to remember"
            )
        if "moment" not in self.state:
            self.state["moment"] = gradient.new_zeros(size, size, dtype=torch.float64)
        wide = gradient.double()
        self.state["moment"].addr_(wide, wide)

    def apply(self, gradients: list[Tensor]) -> list[Tensor]:
        """Multiplies vectors [P] by the root.

        Returns:
            As many.

        Raises:
            NumericalError: If there is none.
        """
        root, _ = inverse_root(self.state["moment"], 2, self.epsilon)
        if root is None:
            raise NumericalError("the sum of outer products has no root: raise epsilon=")
        return [(root @ g.double()).to(g.dtype) for g in gradients]


class WindowRoot(TensorPreconditioner):
    """(G Gᵀ + ε I)^(−1/2) of the last r gradients, the columns of G [P, r], without forming it.

    The newest gradient is one of them, g = G e, so that the product is G (Gᵀ G + ε I)^(−1/2) e,
    with a root of r × r.

    Args:
        state: Where G is kept, a row a gradient, and Gᵀ G.
        epsilon: ε.
        memory: r.

    Reference:
        Agarwal et al., "Efficient full-matrix adaptive regularization", 2019.
    """

    names = ("window", "gram", "newest")

    def __init__(self, state: dict[str, Any], epsilon: float, memory: int) -> None:
        super().__init__([state])
        self.state = state
        self.epsilon = epsilon
        self.memory = memory

    def update(self, statistics: list[Tensor]) -> None:
        """Lets a gradient [P] replace the oldest."""
        (gradient,) = statistics
        state = self.state
        if "window" not in state:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            state["window"] = gradient.new_zeros(self.memory, len(gradient), dtype=wide)
            state["gram"] = gradient.new_zeros(self.memory, self.memory, dtype=torch.float64)
            state["newest"] = -1
        window, gram = state["window"], state["gram"]
        state["newest"] = place = (state["newest"] + 1) % self.memory
        window[place] = gradient
        gram[place] = gram[:, place] = _products(window, place)

    def apply(self, gradients: list[Tensor]) -> list[Tensor]:
        """Multiplies the newest gradient, which is all it can: of any other, G e is not known.

        Returns:
            The product.

        Raises:
            NumericalError: If there is no root.
        """
        (gradient,) = gradients
        state = self.state
        gram = state["gram"].clone()
        # Nearly equal gradients have differences whose digits are lost in the window's precision:
        # weights that are this much larger than the gradients' own would bring rounding alone.
        lost = (1000 * torch.finfo(state["window"].dtype).eps) ** 2 + self.memory * 2**-52
        gram.diagonal().add_(lost * gram.diagonal().sum())
        root, _ = inverse_root(gram, 2, self.epsilon)
        if root is None:
            raise NumericalError("the products of the last gradients have no root: raise epsilon=")
        weights = root[state["newest"]].to(state["window"].dtype)
        return [(weights @ state["window"]).to(gradient.dtype)]


def _products(window: Tensor, place: int) -> Tensor:
    """Row ``place`` of G Gᵀ in float64, a piece at a time: no copy of all of G is made."""
    total = window.new_zeros(len(window), dtype=torch.float64)
    for piece in window.split(PIECE, dim=1):
        wide = piece.double()
        total += wide @ wide[place]
    return total
