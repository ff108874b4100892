"""K-BFGS: a gradient between the BFGS inverses of a layer's two Kronecker factors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from npg.curvature.kronecker import Block, MatrixBlock
from npg.curvature.kronecker.means import Evaluated, Means
from npg.errors import NumericalError
from npg.linalg import split
from npg.linalg.inverses import positive_inverse
from npg.linalg.quasi_newton import curvature_damped, powell_damped
from npg.preconditioners.base import Preconditioner
from npg.preconditioners.kfac import given_gradients
from npg.preconditioners.secants import DenseSecants, LimitedSecants, Secants

# Powell's μ of the double damping.
POWELL_SHARE = 0.2
# Parameters that are no matrix have a matrix H up to so many entries, above it their last pairs.
DENSE_VECTOR = 256
VECTOR_MEMORY = 10


class InputInverse:
    """H_A ≈ (A + √λ I)⁻¹, by the Hessian action along s = H_A ā: y = (A + √λ I) s.

    sᵀy ≥ √λ ‖s‖² > 0 whatever the batch, so that these pairs need no damping. A diagonal A, that
    of one-hot rows, is inverted as it is.

    Args:
        means: Of the first batch: (A + √λ I)⁻¹ of it is what H_A begins with, of its diagonal
            with ``memory``.
        root: √λ.
        decay: Weight of the past in A, 1 − 1/k in the k-th batch until that is above it.
        memory: Pairs to keep instead of matrices; A is that of the batch alone then.
    """

    def __init__(self, means: Means, root: float, decay: float, memory: int | None) -> None:
        self.decay = decay
        self.root = root
        self.updates = 1
        self.moment = means.moment
        self.secants: Secants | None = None
        if means.rows is not None:
            assert memory is not None
            diagonal = means.rows.square().sum(-2) + root
            self.secants = LimitedSecants(diagonal.reciprocal(), memory)
        elif means.moment is not None and means.inputs is not means.moment:
            self.secants = DenseSecants(_inverse(means.moment, root))

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


class OutputInverse:
    """H_G, by pairs that a second evaluation of the batch gives, averaged and doubly damped.

    s = h̄ − h̄⁺ and y = δ̄ − δ̄⁺ are both what the step took away, so that y is the gradient's change
    along s. Powell's damping moves s until sᵀy ≥ 0.2 yᵀH y, the second moves y until
    sᵀy ≥ √λ sᵀs. H begins as the identity.

    Args:
        secants: The identity.
        decay: Weight of the past in the means of s and y.
    """

    def __init__(self, secants: Secants, decay: float) -> None:
        self.secants = secants
        self.decay = decay
        self.mean_s: Tensor | float = 0.0
        self.mean_y: Tensor | float = 0.0

    def update(self, before: Means, after: Means, root: float) -> None:
        """Takes in what changed from one evaluation of a batch to the next."""
        past, present = self.decay, 1 - self.decay
        self.mean_s = s = past * self.mean_s + present * (before.outputs - after.outputs)
        self.mean_y = y = past * self.mean_y + present * (before.signals - after.signals)
        s, y = double_damped(s, y, self.secants, root)
        self.secants.update(s, y, before.signals)


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


class KroneckerBFGS(Preconditioner[Evaluated, Mapping[Tensor, Tensor]]):
    """V ↦ H_G V H_A per layer; parameters that are no matrix have H_G alone.

    Args:
        blocks: Layers, and parameters outside of them.
        damping: λ; √λ is added to A, and is the least curvature that H_G believes.
        memory: Pairs to keep per factor instead of matrices; None keeps matrices.
        decay: Weight of the past in A, and in the means of the pairs.

    Reference:
        Goldfarb, Ren and Bahamou, "Practical quasi-Newton methods for training deep neural
        networks", 2020, sections 3 and 4.
    """

    def __init__(
        self, blocks: Sequence[Block], *, damping: float, memory: int | None, decay: float
    ) -> None:
        self.blocks = list(blocks)
        self.damping = damping
        self.memory = memory
        self.decay = decay
        self.inputs: list[InputInverse | None] = [None] * len(self.blocks)
        self.outputs: list[OutputInverse | None] = [None] * len(self.blocks)

    def update(self, statistics: Evaluated) -> None:
        """Lets A in, before a step is taken."""
        root = self.damping**0.5
        for i, means in enumerate(statistics.means):
            if means is None:
                continue
            if self.outputs[i] is None:
                self.outputs[i] = OutputInverse(self._identity(i, means.outputs), self.decay)
            known = self.inputs[i]
            if known is not None:
                known.update(means, root)
            elif means.inputs is not None:
                self.inputs[i] = InputInverse(means, root, self.decay, self.memory)

    def follow(self, before: Evaluated, after: Evaluated) -> None:
        """Lets pairs into H_G, after a step was taken.

        Args:
            before: What :meth:`update` got.
            after: The same batch, evaluated where the step led.
        """
        for known, old, new in zip(self.outputs, before.means, after.means, strict=True):
            if known is not None and old is not None and new is not None:
                known.update(old, new, self.damping**0.5)

    def _identity(self, i: int, like: Tensor) -> Secants:
        ones, memory = torch.ones_like(like), self.memory
        if memory is None and not isinstance(self.blocks[i], MatrixBlock):
            memory = VECTOR_MEMORY if like.shape[-1] > DENSE_VECTOR else None
        return DenseSecants(ones.diag_embed()) if memory is None else LimitedSecants(ones, memory)

    def apply(self, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Multiplies by both inverses; what was never seen stays as it is.

        Args:
            gradients: By parameter.

        Returns:
            As many, at least in single precision.
        """
        result: dict[Tensor, Tensor] = {}
        for block, inputs, outputs in zip(self.blocks, self.inputs, self.outputs, strict=True):
            given = given_gradients(block, gradients)
            if not any(p in gradients for p in block.parameters):
                continue
            if outputs is not None:
                wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in given]
                if isinstance(block, MatrixBlock) and inputs is not None:
                    solved = inputs.right(outputs.secants.times(block.layer.matrix(wide)))
                    given = block.layer.gradients(solved)
                else:
                    flat = torch.cat([g.flatten() for g in wide])
                    given = split(outputs.secants.product(flat), block.parameters)
            pairs = zip(block.parameters, given, strict=True)
            result |= {p: direction for p, direction in pairs if p in gradients}
        return result

    def state_dict(self) -> list[dict[str, Any]]:
        """What is known of every block, in order."""
        raise NotImplementedError

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restores what :meth:`state_dict` gave."""
        raise NotImplementedError


def _action(moment: Tensor | None, rows: Tensor | None, vector: Tensor) -> Tensor:
    """A v, from A or from the rows of a batch; a new tensor."""
    column = vector.unsqueeze(-1)
    if moment is not None:
        return (moment @ column).squeeze(-1)
    assert rows is not None
    return (rows.mT @ (rows @ column)).squeeze(-1)


def _inverse(moment: Tensor, root: float) -> Tensor:
    """(A + √λ I)⁻¹ for A [(g,) d, d]."""
    damped = moment.reshape(-1, *moment.shape[-2:]).clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(root)
    inverses, reports = positive_inverse(damped)
    if any(report.failed for report in reports):
        raise NumericalError("the second moment of a layer's inputs could not be inverted")
    return inverses.reshape(moment.shape)
