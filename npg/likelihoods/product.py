"""Products of independent distributions."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from npg.errors import ConfigurationError


class Product(Distribution):
    """Independent components side by side: the product of several distributions.

    Gymnasium's MultiDiscrete action is a product of ``Categorical``s. Values are the components'
    values concatenated along the last dimension; a component with scalar events takes one column.

    Args:
        components: Distributions of equal ``batch_shape`` and events of at most one dimension.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, components: Sequence[Distribution]) -> None:
        self.components = tuple(components)
        if not self.components:
            raise ConfigurationError("Product needs at least one component, got none")
        shapes = {component.batch_shape for component in self.components}
        if len(shapes) != 1:
            raise ConfigurationError(f"components must share a batch shape, got {sorted(shapes)}")
        self._widths = [component.event_shape.numel() for component in self.components]
        super().__init__(shapes.pop(), torch.Size([sum(self._widths)]), validate_args=False)

    def split(self, value: Tensor) -> list[Tensor]:
        """Cuts a value [..., k] into one value per component."""
        pieces = value.split(self._widths, dim=-1)
        return [
            piece if component.event_shape else piece.squeeze(-1)
            for piece, component in zip(pieces, self.components, strict=True)
        ]

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Concatenates one value per component into a value [..., k]."""
        columns = [
            value if component.event_shape else value.unsqueeze(-1)
            for value, component in zip(values, self.components, strict=True)
        ]
        dtype = reduce(torch.promote_types, (column.dtype for column in columns))
        return torch.cat([column.to(dtype) for column in columns], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum of the components' log-probabilities, of shape ``batch_shape``."""
        terms = [
            component.log_prob(piece)
            for component, piece in zip(self.components, self.split(value), strict=True)
        ]
        return torch.stack(terms).sum(0)

    def entropy(self) -> Tensor:
        """Sum of the components' entropies, of shape ``batch_shape``."""
        return torch.stack([component.entropy() for component in self.components]).sum(0)

    def sample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        """Draws values [..., k] with torch's global generator."""
        shape = torch.Size(sample_shape)
        return self.join([component.sample(shape) for component in self.components])


@torch.distributions.kl.register_kl(Product, Product)  # type: ignore[untyped-decorator]
def _kl_product(p: Product, q: Product) -> Tensor:
    pairs = zip(p.components, q.components, strict=True)
    return torch.stack([kl_divergence(a, b) for a, b in pairs]).sum(0)
