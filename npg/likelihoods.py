"""What a natural-gradient method must know of a predictive distribution.

A distribution is parametrised by tensors (logits; mean and scale) that a model computed. For each
family this module knows those tensors, the Fisher matrix in them in closed form, and how to draw
labels with a generator. :func:`register` opens it to more families, as ``torch.distributions.kl``
is open.

A *sample* is one element of ``batch_shape``. A ``Normal`` or ``Bernoulli`` with a batch of two or
more dimensions could mean independent samples or the coordinates of one sample; it is refused, and
``Independent(distribution, 1)`` says which.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from npg.errors import ConfigurationError

D = TypeVar("D", bound=Distribution)
Tensors = tuple[Tensor, ...]


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

    def check(self, distribution: D) -> None:
        """Raises ConfigurationError where it is ambiguous what one sample is."""


def _refuse_ambiguous_batch(distribution: Distribution) -> None:
    if len(distribution.batch_shape) > 1:
        raise ConfigurationError(
            f"{type(distribution).__name__} with batch_shape {tuple(distribution.batch_shape)} is "
            "ambiguous: are the last dimension's entries samples or coordinates of one sample? "
            "Wrap it in torch.distributions.Independent(distribution, 1) for coordinates"
        )


class CategoricalLikelihood(Likelihood[Categorical]):
    """Fisher in the logits: diag(p) − p pᵀ."""

    def tensors(self, distribution: Categorical) -> Tensors:
        """Logits [..., K]."""
        return (distribution.logits,)

    def rebuild(self, distribution: Categorical, tensors: Tensors) -> Categorical:
        """Categorical with these logits."""
        return Categorical(logits=tensors[0], validate_args=False)

    def fisher_product(self, distribution: Categorical, tangents: Tensors) -> Tensors:
        """(diag(p) − p pᵀ) t."""
        weighted = distribution.probs * tangents[0]
        return (weighted - distribution.probs * weighted.sum(-1, keepdim=True),)

    def sample(self, distribution: Categorical, generator: torch.Generator | None) -> Tensor:
        """Class indices of shape ``batch_shape``."""
        rows = distribution.probs.reshape(-1, distribution.probs.shape[-1])
        drawn = torch.multinomial(rows, 1, generator=generator)
        return drawn.reshape(distribution.batch_shape)


class BernoulliLikelihood(Likelihood[Bernoulli]):
    """Fisher in the logits: p (1 − p)."""

    def tensors(self, distribution: Bernoulli) -> Tensors:
        """Logits [...]."""
        return (distribution.logits,)

    def rebuild(self, distribution: Bernoulli, tensors: Tensors) -> Bernoulli:
        """Bernoulli with these logits."""
        return Bernoulli(logits=tensors[0], validate_args=False)

    def fisher_product(self, distribution: Bernoulli, tangents: Tensors) -> Tensors:
        """p (1 − p) t."""
        p = distribution.probs
        return (p * (1 - p) * tangents[0],)

    def sample(self, distribution: Bernoulli, generator: torch.Generator | None) -> Tensor:
        """Zeros and ones of shape ``batch_shape``."""
        return torch.bernoulli(distribution.probs, generator=generator)

    def check(self, distribution: Bernoulli) -> None:
        """Refuses batches of two or more dimensions."""
        _refuse_ambiguous_batch(distribution)


class NormalLikelihood(Likelihood[Normal]):
    """Fisher in (μ, σ): diag(1/σ², 2/σ²)."""

    def tensors(self, distribution: Normal) -> Tensors:
        """Mean and standard deviation, each [...]."""
        return (distribution.loc, distribution.scale)

    def rebuild(self, distribution: Normal, tensors: Tensors) -> Normal:
        """Normal with this mean and standard deviation."""
        return Normal(tensors[0], tensors[1], validate_args=False)

    def fisher_product(self, distribution: Normal, tangents: Tensors) -> Tensors:
        """(t_μ / σ², 2 t_σ / σ²)."""
        precision = distribution.scale.pow(-2)
        return (precision * tangents[0], 2 * precision * tangents[1])

    def sample(self, distribution: Normal, generator: torch.Generator | None) -> Tensor:
        """Real numbers of shape ``batch_shape``."""
        return distribution.loc + distribution.scale * _noise(distribution.loc, generator)

    def check(self, distribution: Normal) -> None:
        """Refuses batches of two or more dimensions."""
        _refuse_ambiguous_batch(distribution)


class MultivariateNormalLikelihood(Likelihood[MultivariateNormal]):
    """Fisher in (μ, L), covariance L Lᵀ; a fixed covariance simply has no gradient.

    The mean block is Σ⁻¹. In L the quadratic form is tr(M²) + tr(M Mᵀ) with M = L⁻¹ dL, hence the
    product tril(L⁻ᵀ (M + Mᵀ)).
    """

    def tensors(self, distribution: MultivariateNormal) -> Tensors:
        """Mean [..., d] and lower-triangular scale [..., d, d]."""
        return (distribution.loc, distribution.scale_tril)

    def rebuild(self, distribution: MultivariateNormal, tensors: Tensors) -> MultivariateNormal:
        """MultivariateNormal with this mean and scale_tril."""
        return MultivariateNormal(tensors[0], scale_tril=tensors[1], validate_args=False)

    def fisher_product(self, distribution: MultivariateNormal, tangents: Tensors) -> Tensors:
        """(Σ⁻¹ t_μ, tril(L⁻ᵀ (M + Mᵀ)))."""
        scale = distribution.scale_tril
        mean = torch.cholesky_solve(tangents[0].unsqueeze(-1), scale).squeeze(-1)
        m = torch.linalg.solve_triangular(scale, tangents[1].tril(), upper=False)
        product = torch.linalg.solve_triangular(scale.mT, m + m.mT, upper=True)
        return (mean, product.tril())

    def sample(self, distribution: MultivariateNormal, generator: torch.Generator | None) -> Tensor:
        """Vectors [..., d]."""
        noise = _noise(distribution.loc, generator).unsqueeze(-1)
        return distribution.loc + (distribution.scale_tril @ noise).squeeze(-1)


class IndependentLikelihood(Likelihood["Independent[Any]"]):
    """The base family with some batch dimensions read as coordinates of one sample."""

    def tensors(self, distribution: "Independent[Any]") -> Tensors:
        """The base distribution's tensors."""
        base = distribution.base_dist
        return _family(base).tensors(base)

    def rebuild(self, distribution: "Independent[Any]", tensors: Tensors) -> "Independent[Any]":
        """Independent over the rebuilt base."""
        base = _family(distribution.base_dist).rebuild(distribution.base_dist, tensors)
        dimensions = distribution.reinterpreted_batch_ndims
        return Independent(base, dimensions, validate_args=False)

    def fisher_product(self, distribution: "Independent[Any]", tangents: Tensors) -> Tensors:
        """The base's product: coordinates do not interact."""
        return _family(distribution.base_dist).fisher_product(distribution.base_dist, tangents)

    def sample(self, distribution: "Independent[Any]", generator: torch.Generator | None) -> Tensor:
        """The base's sample."""
        return _family(distribution.base_dist).sample(distribution.base_dist, generator)

    def check(self, distribution: "Independent[Any]") -> None:
        """Refuses only what the base would refuse beyond the reinterpreted dimensions."""
        says = distribution.reinterpreted_batch_ndims > 0
        if not (says and isinstance(distribution.base_dist, (Normal, Bernoulli))):
            likelihood(distribution.base_dist)


class ProductLikelihood(Likelihood[Product]):
    """Block diagonal over the components."""

    def tensors(self, distribution: Product) -> Tensors:
        """The components' tensors, in their order."""
        return tuple(t for c in distribution.components for t in _family(c).tensors(c))

    def rebuild(self, distribution: Product, tensors: Tensors) -> Product:
        """Product of the rebuilt components."""
        return Product(self._each(distribution, tensors, lambda f, c, t: f.rebuild(c, t)))

    def fisher_product(self, distribution: Product, tangents: Tensors) -> Tensors:
        """The components' products."""
        blocks = self._each(distribution, tangents, lambda f, c, t: f.fisher_product(c, t))
        return tuple(product for block in blocks for product in block)

    def sample(self, distribution: Product, generator: torch.Generator | None) -> Tensor:
        """The components' samples, concatenated."""
        return distribution.join([_family(c).sample(c, generator) for c in distribution.components])

    def check(self, distribution: Product) -> None:
        """Refuses what a component refuses."""
        for component in distribution.components:
            likelihood(component)

    @staticmethod
    def _each(
        distribution: Product,
        tensors: Tensors,
        function: Callable[[Likelihood[Any], Distribution, Tensors], Any],
    ) -> list[Any]:
        results, start = [], 0
        for component in distribution.components:
            family = _family(component)
            count = len(family.tensors(component))
            results.append(function(family, component, tensors[start : start + count]))
            start += count
        return results


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


_REGISTRY: dict[type[Distribution], Likelihood[Any]] = {}


def register(distribution: type[D], family: Likelihood[D]) -> None:
    """Makes a distribution class known to every curvature matrix and optimizer.

    Args:
        distribution: The class; subclasses that are not registered themselves use it too.
        family: Its tensors, Fisher product and sampler. A KL divergence must be registered with
            ``torch.distributions.kl.register_kl`` for trust regions.
    """
    _REGISTRY[distribution] = family


register(Categorical, CategoricalLikelihood())
register(Bernoulli, BernoulliLikelihood())
register(Normal, NormalLikelihood())
register(MultivariateNormal, MultivariateNormalLikelihood())
register(Independent, IndependentLikelihood())
register(Product, ProductLikelihood())


def _family(distribution: Distribution) -> Likelihood[Any]:
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
    family = _family(distribution)
    family.check(distribution)
    return family


def joint_kl(p: Distribution, q: Distribution) -> Tensor:
    """KL(p ‖ q) of whole samples, summed over coordinates, computed in float64.

    Near p = q the KL is a small difference of numbers near one: float32 would lose the digits that
    a trust region decides on.

    Args:
        p: Distribution under which the expectation is taken (the old one, in a trust region).
        q: Distribution of the same family and shape.

    Returns:
        Tensor of shape ``batch_shape``, in nats, float64, outside the graph.
    """
    return kl_divergence(detached(p, torch.float64), detached(q, torch.float64))


def detached(distribution: Distribution, dtype: torch.dtype | None = None) -> Distribution:
    """Copies a distribution out of the graph, and out of the parameters' memory.

    A Normal's scale may be a view of a parameter; the copy stays when the parameter moves.

    Args:
        distribution: Any registered distribution.
        dtype: Floating-point type of the copy. Default: unchanged.

    Returns:
        The same family on detached tensors.
    """
    family = likelihood(distribution)
    tensors = tuple(
        tensor.detach().to(dtype=dtype or tensor.dtype, copy=True)
        for tensor in family.tensors(distribution)
    )
    rebuilt: Distribution = family.rebuild(distribution, tensors)
    return rebuilt


def score(distribution: Distribution, value: Tensor) -> Tensors:
    """∇ log p(value) in the distribution's own tensors, one per sample.

    Args:
        distribution: A prediction.
        value: One observed or sampled value per sample.

    Returns:
        Tensors of the shapes of the distribution's parameter tensors, outside the graph.
    """
    family = likelihood(distribution)
    leaves = tuple(t.detach().requires_grad_() for t in family.tensors(distribution))
    with torch.enable_grad():
        log_prob = family.rebuild(distribution, leaves).log_prob(value).sum()
    return torch.autograd.grad(log_prob, leaves)


NAMED: dict[str, Callable[[Tensor], Distribution]] = {
    "categorical": lambda output: Categorical(logits=output, validate_args=False),
    "bernoulli": lambda output: Independent(
        Bernoulli(logits=output, validate_args=False), max(output.ndim - 1, 0), validate_args=False
    ),
    "normal": lambda output: _unit_normal(output, variance=1.0),
    # ‖f − y‖²/d, the mean over outputs, is −log p of a variance d/2, up to a constant.
    "mse": lambda output: _unit_normal(output, variance=output.shape[1:].numel() / 2),
}


def _unit_normal(output: Tensor, variance: float) -> Distribution:
    scale = torch.full_like(output, variance**0.5)
    normal = Normal(output, scale, validate_args=False)
    return Independent(normal, max(output.ndim - 1, 0), validate_args=False)


def as_distribution(
    prediction: Distribution | Tensor,
    family: str | Callable[[Tensor], Distribution] | None = None,
) -> Distribution:
    """Reads a model's output as a distribution.

    Args:
        prediction: A distribution, or a module's output tensor with samples along dimension 0.
        family: How a tensor parametrises the prediction: ``"categorical"`` (logits, classes
            last), ``"bernoulli"`` (logits), ``"normal"`` (mean, unit variance), ``"mse"`` (mean,
            for a squared error averaged over outputs), or a callable output → Distribution.

    Returns:
        The distribution.

    Raises:
        ConfigurationError: If the prediction is a tensor and ``family`` does not say what it means.
    """
    if isinstance(prediction, Distribution):
        return prediction
    if callable(family):
        return family(prediction)
    if family in NAMED:
        return NAMED[family](prediction)
    raise ConfigurationError(
        f"the prediction is a tensor and likelihood={family!r} does not say what it parametrises: "
        f"pass likelihood= one of {sorted(NAMED)} or a callable, or return a Distribution"
    )
