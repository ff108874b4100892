"""The families of torch.distributions that predictions are made of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
)

from npg.errors import ConfigurationError
from npg.likelihoods.product import Product
from npg.likelihoods.registry import Likelihood, Tensors, family_of, likelihood, register


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

    def draws(
        self, distribution: Categorical, number: int, generator: torch.Generator | None
    ) -> Tensor:
        """Class indices [number, *batch_shape], a tenth of the time of as many samples."""
        rows = distribution.probs.reshape(-1, distribution.probs.shape[-1])
        drawn = torch.multinomial(rows, number, replacement=True, generator=generator)
        return drawn.T.reshape(number, *distribution.batch_shape)

    @torch.no_grad()
    def score(self, distribution: Categorical, value: Tensor) -> Tensors:
        """1_k − p."""
        chosen = value.long().expand(distribution.batch_shape).unsqueeze(-1)
        probs = distribution.probs
        return (probs.neg().scatter_add_(-1, chosen, torch.ones_like(probs)),)


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
        p = distribution.probs  # torch.bernoulli would draw them one by one
        wide = torch.promote_types(p.dtype, torch.float32)
        drawn = torch.rand(p.shape, generator=generator, dtype=wide, device=p.device)
        return (drawn < p).to(p.dtype)

    @torch.no_grad()
    def score(self, distribution: Bernoulli, value: Tensor) -> Tensors:
        """x − p."""
        return (value - distribution.probs,)

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

    @torch.no_grad()
    def score(self, distribution: Normal, value: Tensor) -> Tensors:
        """(z / σ, (z² − 1) / σ) with z = (x − μ) / σ."""
        z = (value - distribution.loc) / distribution.scale
        return (z / distribution.scale, (z.square() - 1) / distribution.scale)

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
        return family_of(base).tensors(base)

    def rebuild(self, distribution: "Independent[Any]", tensors: Tensors) -> "Independent[Any]":
        """Independent over the rebuilt base."""
        base = family_of(distribution.base_dist).rebuild(distribution.base_dist, tensors)
        dimensions = distribution.reinterpreted_batch_ndims
        return Independent(base, dimensions, validate_args=False)

    def fisher_product(self, distribution: "Independent[Any]", tangents: Tensors) -> Tensors:
        """The base's product: coordinates do not interact."""
        return family_of(distribution.base_dist).fisher_product(distribution.base_dist, tangents)

    def sample(self, distribution: "Independent[Any]", generator: torch.Generator | None) -> Tensor:
        """The base's sample."""
        return family_of(distribution.base_dist).sample(distribution.base_dist, generator)

    def score(self, distribution: "Independent[Any]", value: Tensor) -> Tensors:
        """The base's score."""
        return family_of(distribution.base_dist).score(distribution.base_dist, value)

    def check(self, distribution: "Independent[Any]") -> None:
        """Refuses only what the base would refuse beyond the reinterpreted dimensions."""
        says = distribution.reinterpreted_batch_ndims > 0
        if not (says and isinstance(distribution.base_dist, (Normal, Bernoulli))):
            likelihood(distribution.base_dist)


class ProductLikelihood(Likelihood[Product]):
    """Block diagonal over the components."""

    def tensors(self, distribution: Product) -> Tensors:
        """The components' tensors, in their order."""
        return tuple(t for c in distribution.components for t in family_of(c).tensors(c))

    def rebuild(self, distribution: Product, tensors: Tensors) -> Product:
        """Product of the rebuilt components."""
        return Product(self._each(distribution, tensors, lambda f, c, t: f.rebuild(c, t)))

    def fisher_product(self, distribution: Product, tangents: Tensors) -> Tensors:
        """The components' products."""
        blocks = self._each(distribution, tangents, lambda f, c, t: f.fisher_product(c, t))
        return tuple(product for block in blocks for product in block)

    def sample(self, distribution: Product, generator: torch.Generator | None) -> Tensor:
        """The components' samples, concatenated."""
        return distribution.join(
            [family_of(c).sample(c, generator) for c in distribution.components]
        )

    def score(self, distribution: Product, value: Tensor) -> Tensors:
        """The components' scores."""
        pairs = zip(distribution.components, distribution.split(value), strict=True)
        return tuple(t for c, x in pairs for t in family_of(c).score(c, x))

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
            family = family_of(component)
            count = len(family.tensors(component))
            results.append(function(family, component, tensors[start : start + count]))
            start += count
        return results


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


register(Categorical, CategoricalLikelihood())
register(Bernoulli, BernoulliLikelihood())
register(Normal, NormalLikelihood())
register(MultivariateNormal, MultivariateNormalLikelihood())
register(Independent, IndependentLikelihood())
register(Product, ProductLikelihood())
