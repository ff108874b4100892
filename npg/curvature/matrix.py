"""The common interface of curvature matrices: products, damping, diagonal, dense form."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from npg.errors import ConfigurationError
from npg.linalg import flatten, split


def math_attention() -> AbstractContextManager[None]:
    """Context in which attention can be differentiated twice; the fused kernels cannot."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


class CurvatureMatrix(ABC):
    """A symmetric matrix [P, P] over a model's parameters.

    Vectors are flat tensors [P] in ``named_parameters`` order, columns of a matrix [P, K], or
    mappings from parameter names to tensors of the parameters' shapes; the product comes back in
    the same form.

    Args:
        model: Module whose parameters the matrix is over, or the parameters themselves; these are
            named "0", "1", ….
        parameters: Restricts the matrix to these of the module's parameters (actor only, say); a
            principal block of the full one. Frozen ones are left out. Default: all.

    Attributes:
        names: The parameters' names, in the order of the flat vector.
        parameters: The parameters themselves.
    """

    def __init__(
        self, model: nn.Module | Iterable[Tensor], parameters: Iterable[Tensor] | None = None
    ) -> None:
        wanted = None if parameters is None else {id(p) for p in parameters}
        candidates = list(
            model.named_parameters()
            if isinstance(model, nn.Module)
            else ((str(i), parameter) for i, parameter in enumerate(model))
        )
        named = [
            (name, parameter)
            for name, parameter in candidates
            if parameter.requires_grad and (wanted is None or id(parameter) in wanted)
        ]
        if not named or not (wanted or set()) <= {id(parameter) for _, parameter in candidates}:
            raise ConfigurationError(
                f"model has {len(named)} of the parameters asked for: parameters= must be among "
                "model.parameters(), and at least one must require a gradient"
            )
        self.names = tuple(name for name, _ in named)
        self.parameters = tuple(parameter for _, parameter in named)

    @abstractmethod
    def matvec(self, vector: Tensor) -> Tensor:
        """Multiplies a flat vector [P]; a new tensor each time, outside the graph."""

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        size = sum(parameter.numel() for parameter in self.parameters)
        return size, size

    @overload
    def __matmul__(self, vector: Tensor, /) -> Tensor: ...
    @overload
    def __matmul__(self, vector: Mapping[str, Tensor], /) -> dict[str, Tensor]: ...
    def __matmul__(self, vector: Tensor | Mapping[str, Tensor], /) -> Tensor | dict[str, Tensor]:
        """Multiplies a vector [P], the columns of a matrix [P, K], or a mapping."""
        if isinstance(vector, Tensor):
            if vector.shape[0] != self.shape[0] or vector.ndim not in (1, 2):
                raise ConfigurationError(
                    f"vector must have shape [{self.shape[0]}] or [{self.shape[0]}, K], "
                    f"got {list(vector.shape)}"
                )
            if vector.ndim == 1:
                return self.matvec(vector)
            return torch.stack([self.matvec(column) for column in vector.T], dim=1)
        if set(vector) != set(self.names):
            raise ConfigurationError(
                f"the mapping's keys must be the parameters {self.names}, got {tuple(vector)}"
            )
        product = self.matvec(flatten(vector[name] for name in self.names))
        return dict(zip(self.names, split(product, self.parameters), strict=True))

    def __add__(self, damping: float) -> "DampedMatrix":
        """Returns the matrix with ``damping`` added to its diagonal."""
        return DampedMatrix(self, damping)

    def _columns(self) -> Iterable[tuple[int, Tensor]]:
        unit = flatten(torch.zeros_like(parameter) for parameter in self.parameters)
        for i in range(len(unit)):
            unit[i] = 1
            yield i, self.matvec(unit)
            unit[i] = 0

    def to_dense(self) -> Tensor:
        """Forms the matrix [P, P] from P products, symmetrised: for small models."""
        dense = torch.stack([column for _, column in self._columns()])
        return (dense + dense.T) / 2

    def diagonal(self) -> Tensor:
        """Returns the exact diagonal [P] from P products, without forming the matrix."""
        return torch.stack([column[i] for i, column in self._columns()])

    def trace(self) -> Tensor:
        """Returns the exact trace (a scalar tensor) from P products."""
        return self.diagonal().sum()


class DampedMatrix(CurvatureMatrix):
    """C + λI.

    Args:
        matrix: C.
        damping: λ ≥ 0, in the units of C's eigenvalues. High values turn C⁻¹g towards the
            gradient, low values trust the curvature where it is hardly known.
    """

    def __init__(self, matrix: CurvatureMatrix, damping: float) -> None:
        if not damping >= 0:
            raise ConfigurationError(f"damping must not be negative, got {damping}")
        self.matrix = matrix
        self.damping = damping
        self.names = matrix.names
        self.parameters = matrix.parameters

    def matvec(self, vector: Tensor) -> Tensor:
        """Returns C v + λ v."""
        return self.matrix.matvec(vector).add_(vector, alpha=self.damping)
