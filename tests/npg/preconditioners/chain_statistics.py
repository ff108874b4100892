"""Statistics of chains of layers, and the dense matrices of Kronecker products made of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npg.preconditioners import TridiagonalInverse


@dataclass(frozen=True)
class Statistics:
    """E[x_l x_mᵀ] of all layers l, m: the joint second moment of inputs, and that of signals."""

    inputs: list[list[Tensor]]
    signals: list[list[Tensor]]

    def inverse(self, damping: float | Tensor) -> TridiagonalInverse:
        return TridiagonalInverse(*self.neighbours(), damping)

    def neighbours(self) -> tuple[list[Tensor], ...]:
        layers = range(len(self.inputs))
        return (
            [self.inputs[i][i] for i in layers],
            [self.signals[i][i] for i in layers],
            [self.inputs[i][i + 1] for i in layers[:-1]],
            [self.signals[i][i + 1] for i in layers[:-1]],
        )

    def damped(self, damping: float) -> "Statistics":
        """π from its definition; damping goes to the diagonal factors alone."""
        inputs = [list(row) for row in self.inputs]
        signals = [list(row) for row in self.signals]
        for i, (a_row, g_row) in enumerate(zip(self.inputs, self.signals, strict=True)):
            a, g = a_row[i], g_row[i]
            pi = math.sqrt((a.trace() / len(a)) / (g.trace() / len(g)))
            inputs[i][i] = a + pi * math.sqrt(damping) * torch.eye(len(a))
            signals[i][i] = g + math.sqrt(damping) / pi * torch.eye(len(g))
        return Statistics(inputs, signals)

    def dense(self) -> list[list[Tensor]]:
        """Blocks G_lm ⊗ A_lm of F̃."""
        layers = range(len(self.inputs))
        return [[torch.kron(self.signals[i][j], self.inputs[i][j]) for j in layers] for i in layers]

    def to(self, dtype: torch.dtype) -> "Statistics":
        return Statistics(
            *([[m.to(dtype) for m in row] for row in s] for s in (self.inputs, self.signals))
        )


def assemble(blocks: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.cat([torch.cat(list(row), 1) for row in blocks])


def moments(vectors: Sequence[Tensor], weights: Tensor | None = None) -> list[list[Tensor]]:
    if weights is None:
        weights = torch.full((len(vectors[0]),), 1 / len(vectors[0]))
    return [[torch.einsum("n,ni,nj->ij", weights, u, v) for v in vectors] for u in vectors]


def correlated(sizes: Sequence[int], samples: int = 40) -> list[Tensor]:
    """Vectors per layer that depend on those of the layer before, and a little on the first."""
    layers = [torch.randn(samples, sizes[0])]
    for size in sizes[1:]:
        sources = (layers[-1], 0.3 * layers[0])
        mixed = sum(source @ torch.randn(source.shape[1], size) for source in sources)
        layers.append(mixed / 2 + torch.randn(samples, size))
    return layers


def statistics(
    input_sizes: Sequence[int] = (4, 3, 5, 2),
    signal_sizes: Sequence[int] = (3, 4, 2, 3),
    samples: int = 40,
) -> Statistics:
    return Statistics(
        moments(correlated(input_sizes, samples)), moments(correlated(signal_sizes, samples))
    )


def gradients(given: Statistics) -> list[Tensor]:
    layers = range(len(given.inputs))
    dtype = given.inputs[0][0].dtype
    return [
        torch.randn(len(given.signals[i][i]), len(given.inputs[i][i]), dtype=dtype) for i in layers
    ]


def applied(inverse: TridiagonalInverse, given: Statistics) -> Tensor:
    """The inverse as a dense matrix, one product per unit vector."""
    like = gradients(given)
    columns = []
    for unit in torch.eye(sum(g.numel() for g in like)):
        pieces = unit.split([g.numel() for g in like])
        products = inverse.apply([p.view_as(g) for p, g in zip(pieces, like, strict=True)])
        columns.append(torch.cat([p.flatten() for p in products]))
    return torch.stack(columns, 1)


def transitions(given: Statistics) -> list[Tensor]:
    """Ψ_l = F̃_{l,l+1} F̃_{l+1,l+1}⁻¹, from the Kronecker products themselves."""
    dense = given.dense()
    return [dense[i][i + 1] @ torch.linalg.inv(dense[i + 1][i + 1]) for i in range(len(dense) - 1)]


def block_diagonal(given: Statistics) -> Tensor:
    dense = given.dense()
    return torch.block_diag(*(torch.linalg.inv(dense[i][i]) for i in range(len(dense))))
