"""The two factors of K-BFGS: inverses of what a layer gets, and of what it is told."""

from typing import Any

import torch
from torch import Tensor

from npg.curvature.kronecker.means import Means
from npg.errors import NumericalError
from npg.linalg.inverses import positive_inverse
from npg.linalg.quasi_newton import curvature_damped, powell_damped
from npg.preconditioners.secants import DenseSecants, LimitedSecants, Secants

# Powell's μ of the double damping.
POWELL_SHARE = 0.2


class InputInverse:
    """H_A ≈ (A + √λ I)⁻¹, by the Hessian action along s = H_A ā: y = (A + √λ I) s.

    sᵀy ≥ √λ ‖s‖² > 0 whatever the batch, so that these pairs need no damping. A diagonal A, that
    of one-hot rows, is inverted as it is.

    Args:
        moment: A, which is kept; None where every batch's own is taken.
        secants: H_A to begin with; None where A is a diagonal.
        decay: Weight of the past in A, 1 − 1/k in the k-th batch until that is above it.
    """

    def __init__(self, moment: Tensor | None, secants: Secants | None, decay: float) -> None:
        self.moment = moment
        self.secants = secants
        self.decay = decay
        self.updates = 1
        self.root = 1.0

    @classmethod
    def begin(
        cls, means: Means, root: float, decay: float, memory: int | None = None
    ) -> "InputInverse":
        """Begins with (A + √λ I)⁻¹ of the first batch; with that of its diagonal for pairs.

        Args:
            means: Of that batch.
            root: √λ.
            decay: Weight of the past in A.
            memory: Pairs to keep, where the means have rows instead of A.

        Returns:
            The inverse.
        """
        secants: Secants | None = None
        if means.rows is not None:
            assert memory is not None
            diagonal = means.rows.square().sum(-2) + root
            secants = LimitedSecants(diagonal.reciprocal(), memory)
        elif means.moment is not means.inputs:
            assert means.moment is not None
            secants = DenseSecants(_inverse(means.moment, root))
        result = cls(means.moment, secants, decay)
        result.root = root
        return result

    def update(self, means: Means, root: float) -> None:
        """Takes in a further batch."""
        self.root = root
        self.updates += 1
        if self.moment is not None and means.moment is not None:
            self.moment.lerp_(means.moment, max(1 / self.updates, 1 - self.decay))
        if self.secants is None:
            return
        assert means.inputs is not None
        s = self.secants.product(means.inputs)
        y = _action(self.moment, means.rows, s).add_(s, alpha=root)
        self.secants.update(s, y, means.inputs)

    def right(self, matrix: Tensor) -> Tensor:
        """V H_A for V [(g,) o, d]."""
        if self.secants is None:
            assert self.moment is not None
            return matrix / (self.moment + self.root)
        return self.secants.times(matrix.mT).mT

    def state(self) -> dict[str, Any]:
        """What is known: A, H_A, and how many batches they are of."""
        return {
            "updates": self.updates,
            "moment": self.moment,
            "secants": None if self.secants is None else self.secants.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes over copies of what :meth:`state` gave."""
        self.updates = int(state["updates"])
        if self.moment is not None:
            self.moment = state["moment"].to(self.moment.device, copy=True)
        if self.secants is not None:
            self.secants.load(state["secants"])

    def fits(self, state: dict[str, Any]) -> bool:
        """Whether :meth:`load` could."""
        return _alike(self.moment, state["moment"]) and _fit(self.secants, state["secants"])


class OutputInverse:
    """H_G, by pairs that a second evaluation of the batch gives, averaged and doubly damped.

    s = h̄ − h̄⁺ and y = δ̄ − δ̄⁺ are both what the step took away, so that y is the gradient's change
    along s. Powell's damping moves s until sᵀy ≥ 0.2 yᵀH y, the second moves y until
    sᵀy ≥ √λ sᵀs. H begins as the identity.

    Args:
        secants: The identity.
        like: A tensor of the shape of s.
        decay: Weight of the past in the means of s and y.
    """

    def __init__(self, secants: Secants, like: Tensor, decay: float) -> None:
        self.secants = secants
        self.decay = decay
        self.mean_s = torch.zeros_like(like)
        self.mean_y = torch.zeros_like(like)

    def update(self, before: Means, after: Means, root: float) -> None:
        """Takes in what changed from one evaluation of a batch to the next."""
        self.mean_s.lerp_(before.outputs - after.outputs, 1 - self.decay)
        self.mean_y.lerp_(before.signals - after.signals, 1 - self.decay)
        s, y = double_damped(self.mean_s, self.mean_y, self.secants, root)
        self.secants.update(s, y, before.signals)

    def state(self) -> dict[str, Any]:
        """What is known: H_G, and the means of its pairs."""
        return {"s": self.mean_s, "y": self.mean_y, "secants": self.secants.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over copies of what :meth:`state` gave."""
        self.mean_s = state["s"].to(self.mean_s.device, copy=True)
        self.mean_y = state["y"].to(self.mean_y.device, copy=True)
        self.secants.load(state["secants"])

    def fits(self, state: dict[str, Any]) -> bool:
        """Whether :meth:`load` could."""
        return _alike(self.mean_s, state["s"]) and _fit(self.secants, state["secants"])


def double_damped(s: Tensor, y: Tensor, inverse: Secants, root: float) -> tuple[Tensor, Tensor]:
    """Both dampings of a pair, Powell's first.

    Args:
        s: Step [..., n].
        y: Change of the gradient [..., n].
        inverse: H before the pair.
        root: √λ, the least curvature that is believed.

    Returns:
        s̃ and ỹ, with s̃ᵀỹ ≥ √λ ‖s̃‖².
    """
    s = powell_damped(s, y, inverse.product(y), POWELL_SHARE)
    return s, curvature_damped(s, y, root)


def _action(moment: Tensor | None, rows: Tensor | None, vector: Tensor) -> Tensor:
    """A v, from A or from the rows of a batch; a new tensor."""
    column = vector.unsqueeze(-1)
    if moment is not None:
        return (moment @ column).squeeze(-1)
    assert rows is not None
    return (rows.mT @ (rows @ column)).squeeze(-1)


def _alike(own: Tensor | None, given: Tensor | None) -> bool:
    if own is None or given is None:
        return own is None and given is None
    return own.shape == given.shape


def _fit(own: Secants | None, given: dict[str, Tensor] | None) -> bool:
    if own is None or given is None:
        return own is None and given is None
    return own.fits(given)


def _inverse(moment: Tensor, root: float) -> Tensor:
    """(A + √λ I)⁻¹ for A [(g,) d, d]."""
    damped = moment.reshape(-1, *moment.shape[-2:]).clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(root)
    inverses, reports = positive_inverse(damped)
    if any(report.failed for report in reports):
        raise NumericalError("the second moment of a layer's inputs could not be inverted")
    return inverses.reshape(moment.shape)
