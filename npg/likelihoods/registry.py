"""What is known of a family of distributions, and where it is looked up."""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from npg.errors import ConfigurationError

D = TypeVar("D", bound=Distribution)
Tensors = tuple[Tensor, ...]


class Likelihood(ABC, Generic[D]):
    """One family of distributions; stateless."""

    @abstractmethod
    def tensors(self, distribution: D) -> Tensors:
        """Returns the tensors that parametrise the distribution, still attached to the graph."""

    @abstractmethod
    def rebuild(self, distribution: D, tensors: Tensors) -> D:
        """Returns the same family with other tensors in place of :meth:`tensors`."""

    @abstractmethod
    def fisher_product(self, distribution: D, tangents: Tensors) -> Tensors:
        """Applies each sample's Fisher matrix in :meth:`tensors` to tangents of their shapes."""

    @abstractmethod
    def sample(self, distribution: D, generator: torch.Generator | None) -> Tensor:
        """Draws one value per sample."""

    def draws(self, distribution: D, number: int, generator: torch.Generator | None) -> Tensor:
        """Draws several values per sample, [number, *batch_shape, *event_shape]."""
        repeated = tuple(t.expand(number, *t.shape) for t in self.tensors(distribution))
        return self.sample(self.rebuild(distribution, repeated), generator)

    def score(self, distribution: D, value: Tensor) -> Tensors:
        """Returns ∇ log p(value) in :meth:`tensors`, one per sample, outside the graph.

        By autograd, unless a family knows better.
        """
        leaves = tuple(t.detach().requires_grad_() for t in self.tensors(distribution))
        with torch.enable_grad():
            log_prob = self.rebuild(distribution, leaves).log_prob(value).sum()
        return torch.autograd.grad(log_prob, leaves)

    def check(self, distribution: D) -> None:
        """Raises ConfigurationError where it is ambiguous what one sample is."""


_REGISTRY: dict[type[Distribution], Likelihood[Any]] = {}


def register(distribution: type[D], family: Likelihood[D]) -> None:
    """Makes a distribution class known to every curvature matrix and optimizer.

    Args:
        distribution: The class; subclasses that are not registered themselves use it too.
        family: Its tensors, Fisher product and sampler. A KL divergence must be registered with
            ``torch.distributions.kl.register_kl`` for trust regions.
    """
    _REGISTRY[distribution] = family


def family_of(distribution: Distribution) -> Likelihood[Any]:
    """The registered family of a distribution, or of its nearest base class, unchecked."""
    for cls in type(distribution).__mro__:
        if cls in _REGISTRY:
            return _REGISTRY[cls]
    known = ", ".join(sorted(cls.__name__ for cls in _REGISTRY))
    raise ConfigurationError(
        f"no likelihood is registered for {type(distribution).__name__} (known: {known}); "
        "npg.likelihoods.register adds one"
    )


def likelihood(distribution: Distribution) -> Likelihood[Any]:
    """Finds the family of a distribution and checks that its samples are unambiguous.

    Args:
        distribution: A prediction, one sample per element of ``batch_shape``.

    Returns:
        The registered family, the nearest base class's where there is no exact one.
    """
    family = family_of(distribution)
    family.check(distribution)
    return family
