"""The inverse of Kronecker factors that keeps what neighbouring layers have in common.

Take the entries of the gradient as Gaussian with covariance F̃, blocks F̃_lm = G_lm ⊗ A_lm. The
block-diagonal inverse supposes that layers are independent. Here they form a Markov chain: layer l
given all later ones depends on layer l + 1 alone,

    x_l | x_{l+1} ~ N(Ψ_l x_{l+1}, Σ_l).

The chain's precision matrix is block tridiagonal, F̂⁻¹ = Ξᵀ Λ Ξ, with Ξ the unit bidiagonal matrix
of the −Ψ_l and Λ the block-diagonal one of the Σ_l⁻¹; F̂ itself agrees with F̃ in all diagonal
blocks and in those beside them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from npg.errors import ConfigurationError, NumericalError
from npg.linalg.kronecker import KroneckerSolver, factored_damping, symmetrised

# Added to each diagonal factor, relative to its mean eigenvalue, when float64 alone is not enough.
JITTERS = (1e-10, 1e-8, 1e-6, 1e-4)
# The spectrum of Σ must exceed the rounding errors of whitening, ε times a condition number, so
# many times.
ROUNDING_MARGIN = 8


class TridiagonalInverse:
    """g ↦ F̂⁻¹g for a chain of layers with matrices W_l [out, in], l = 0 … L − 1.

    With A and G damped, Ψ_l = Ψ^G_l ⊗ Ψ^A_l and Σ_l = G_l ⊗ A_l − C^G_l ⊗ C^A_l, where
    Ψ^A_l = A_{l,l+1} A_{l+1}⁻¹ and C^A_l = Ψ^A_l A_{l+1} Ψ^A_lᵀ, the same for G, and
    Σ_{L−1} = G_{L−1} ⊗ A_{L−1}. All statistics must be means over the same samples, or running
    means with the same weights: else Σ_l need not be positive definite.

    Args:
        inputs: A_l = E[a_l a_lᵀ] [in, in] per layer; with a bias in the last column of W_l, a_l
            ends in a 1.
        signals: G_l = E[δ_l δ_lᵀ] [out, out] per layer, δ_l the gradient of one sample's log
            likelihood by the layer's output.
        input_pairs: A_{l,l+1} = E[a_l a_{l+1}ᵀ] per neighbours; L − 1 of them.
        signal_pairs: G_{l,l+1} = E[δ_l δ_{l+1}ᵀ] per neighbours.
        damping: λ ≥ 0, in the units of F; √λ goes to each factor, shared by
            :func:`npg.linalg.factored_damping`. High values turn the result towards g / λ, low
            ones trust the statistics where few samples support them.

    Attributes:
        precision: Type in which the factorisation succeeded: that of the statistics, or float64
            after float32 failed.
        jitter: What was added to the factors' diagonals, relative to their mean eigenvalue; 0 but
            for statistics that are indefinite beyond the damping.

    Raises:
        ConfigurationError: If the shapes are not those of a chain, or λ is negative.
        NumericalError: If a statistic is not finite, or Σ is not positive definite even with the
            largest jitter.

    Reference:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
        curvature", 2015, section 4.3, appendix B, and section 6.3 for the damping.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        signals: Sequence[Tensor],
        input_pairs: Sequence[Tensor],
        signal_pairs: Sequence[Tensor],
        damping: float | Tensor,
    ) -> None:
        _check(inputs, signals, input_pairs, signal_pairs, damping)
        kept = torch.promote_types(inputs[0].dtype, torch.float32)
        attempts = [(kept, 0.0), (torch.float64, 0.0), *((torch.float64, j) for j in JITTERS)]
        for precision, jitter in attempts if kept == torch.float32 else attempts[1:]:
            chains = [
                _Chain([m.to(precision) for m in diagonal], [m.to(precision) for m in pairs])
                for diagonal, pairs in ((inputs, input_pairs), (signals, signal_pairs))
            ]
            solvers = _conditionals(chains[0], chains[1], damping, jitter)
            if solvers is not None:
                break
        else:
            raise NumericalError(
                "the chain's covariance is not positive definite: raise damping, and take all "
                "factors and pairs from the same samples"
            )
        self.precision, self.jitter = precision, jitter
        self.solvers = [solver.to(kept) for solver in solvers]
        self.transitions = [
            (signal.to(kept), input_.to(kept))
            for signal, input_ in zip(chains[1].transitions, chains[0].transitions, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        """Its matrices as lists of tensors, with the type's name and the jitter."""
        return {
            "solvers": [[s.left, s.right, s.spectrum] for s in self.solvers],
            "transitions": [list(pair) for pair in self.transitions],
            "precision": str(self.precision).removeprefix("torch."),
            "jitter": self.jitter,
        }

    @classmethod
    def restored(cls, state: dict[str, Any], device: torch.device) -> "TridiagonalInverse":
        """Makes the inverse that :meth:`state` described.

        Args:
            state: What it gave.
            device: Where the matrices are to be.

        Returns:
            An inverse that gives the same products, bit for bit.
        """

        def copied(matrices: Sequence[Tensor]) -> list[Tensor]:
            return [matrix.to(device, copy=True) for matrix in matrices]

        made = cls.__new__(cls)
        made.solvers = [KroneckerSolver(*copied(solver)) for solver in state["solvers"]]
        pairs = [copied(pair) for pair in state["transitions"]]
        made.transitions = [(signal, input_) for signal, input_ in pairs]
        made.precision = getattr(torch, state["precision"])
        made.jitter = float(state["jitter"])
        return made

    @torch.no_grad()
    def apply(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Multiplies by F̂⁻¹, without reading from the device.

        Args:
            gradients: One matrix [out, in] per layer.

        Returns:
            New matrices of the same shapes and types.
        """
        given = [g.to(s.left.dtype) for g, s in zip(gradients, self.solvers, strict=True)]
        # Ξ: what the next layer does not predict.
        unpredicted = list(given)
        for i, (signal, input_) in enumerate(self.transitions):
            unpredicted[i] = given[i] - signal @ given[i + 1] @ input_.mT
        solved = [s.solve(u) for s, u in zip(self.solvers, unpredicted, strict=True)]
        # Ξᵀ
        result = list(solved)
        for i, (signal, input_) in enumerate(self.transitions):
            result[i + 1] = solved[i + 1] - signal.mT @ solved[i] @ input_
        return [r.to(g.dtype) for r, g in zip(result, gradients, strict=True)]


class _Chain:
    """One side of the Kronecker products, inputs or signals, of all layers."""

    def __init__(self, diagonal: Sequence[Tensor], pairs: Sequence[Tensor]) -> None:
        self.diagonal = [symmetrised(matrix) for matrix in diagonal]
        self.pairs = pairs
        self.factors: list[Tensor] = []
        self.transitions: list[Tensor] = []

    def factorise(self, damping: Sequence[Tensor], jitter: float) -> Tensor:
        """Damps the diagonal and factorises it; returns 1 / condition number, 0 for failure."""
        # The squared ratio of a factor's smallest to its largest diagonal entry is not below
        # 1 / condition number, and near enough to it.
        reciprocals = []
        for matrix, added in zip(self.diagonal, damping, strict=True):
            diagonal = matrix.diagonal()
            diagonal += added + jitter * diagonal.mean()
            factor, info = torch.linalg.cholesky_ex(matrix)
            self.factors.append(factor)
            pivots = factor.diagonal()
            reciprocal = (pivots.amin() / pivots.amax()).square()
            reciprocals.append(torch.where(info == 0, reciprocal, 0.0))
        return torch.stack(reciprocals).amin()

    def regress(self) -> list[Tensor]:
        """Sets Ψ_l, the regression of layer l on l + 1, and returns C_l = Ψ_l M_{l+1} Ψ_lᵀ."""
        explained = []
        for pair, factor in zip(self.pairs, self.factors[1:], strict=True):
            half = torch.linalg.solve_triangular(factor, pair.mT, upper=False)
            self.transitions.append(torch.linalg.solve_triangular(factor.mT, half, upper=True).mT)
            explained.append(half.mT @ half)
        return explained


def _conditionals(
    inputs: _Chain, signals: _Chain, damping: float | Tensor, jitter: float
) -> list[KroneckerSolver] | None:
    """Solvers of Σ_0 … Σ_{L−1}, or None where rounding left one not safely positive."""
    shares = [
        factored_damping(a, g, damping)
        for a, g in zip(inputs.diagonal, signals.diagonal, strict=True)
    ]
    reciprocal = torch.minimum(
        inputs.factorise([share[0] for share in shares], jitter),
        signals.factorise([share[1] for share in shares], jitter),
    )
    rounding = ROUNDING_MARGIN * torch.finfo(reciprocal.dtype).eps
    if not float(reciprocal) > rounding:
        return None
    rounding /= float(reciprocal)
    explained = list(zip(signals.regress(), inputs.regress(), strict=True))
    factors = list(zip(signals.factors, inputs.factors, strict=True))
    try:
        solvers = [
            KroneckerSolver.of_difference(*factor, *removed)
            for factor, removed in zip(factors[:-1], explained, strict=True)
        ]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # eigh, in float32 mostly
        return None
    solvers.append(KroneckerSolver.of_product(*factors[-1]))
    lowest = torch.stack([solver.spectrum.amin() for solver in solvers]).amin()
    return solvers if float(lowest) > rounding else None


def _check(
    inputs: Sequence[Tensor],
    signals: Sequence[Tensor],
    input_pairs: Sequence[Tensor],
    signal_pairs: Sequence[Tensor],
    damping: float | Tensor,
) -> None:
    """Refuses what is no chain, or not finite."""
    if not float(damping) >= 0:
        raise ConfigurationError(f"damping must not be negative, got {float(damping)}")
    if not inputs:
        raise ConfigurationError("a chain has at least one layer: inputs is empty")
    if len(signals) != len(inputs):
        raise ConfigurationError(
            f"every layer has inputs and signals, got {len(inputs)} and {len(signals)}"
        )
    sides = (("input", inputs, input_pairs), ("signal", signals, signal_pairs))
    for name, diagonal, pairs in sides:
        sizes = [len(matrix) for matrix in diagonal]
        expected = [(size, size) for size in sizes], list(pairwise(sizes))
        found = [tuple(m.shape) for m in diagonal], [tuple(m.shape) for m in pairs]
        if found != expected:
            raise ConfigurationError(
                f"{name}s and {name}_pairs must have shapes {expected[0]} and {expected[1]}, "
                f"got {found[0]} and {found[1]}"
            )
        if not bool(torch.stack([torch.isfinite(m).all() for m in (*diagonal, *pairs)]).all()):
            raise NumericalError(f"{name} statistics are not finite: leave such batches out")
