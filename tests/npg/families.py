"""A distribution of every family, and exact expectations under it."""

import itertools
import math

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal

from npg.likelihoods import Product


def normal(*shape):
    return Normal(torch.randn(shape), torch.rand(shape) + 0.5)


def covariance(n, d):
    factor = torch.randn(n, d, d)
    return factor @ factor.mT + torch.eye(d)


def mixed():
    return Product(
        [
            Categorical(logits=torch.randn(4, 3)),
            normal(4),
            Independent(Bernoulli(logits=torch.randn(4, 2)), 1),
            MultivariateNormal(torch.randn(4, 2), covariance(4, 2)),
            Bernoulli(logits=torch.randn(4)),
        ]
    )


FAMILIES = {
    "categorical from logits": lambda: Categorical(logits=torch.randn(4, 3)),
    "categorical from probs": lambda: Categorical(probs=torch.rand(4, 3)),
    "sequence of categoricals": lambda: Categorical(logits=torch.randn(2, 3, 4)),
    "bernoulli from logits": lambda: Bernoulli(logits=torch.randn(4)),
    "bernoulli from probs": lambda: Bernoulli(probs=torch.rand(4)),
    "normal": lambda: normal(4),
    "normal vector": lambda: Independent(normal(4, 3), 1),
    "sequence of normal vectors": lambda: Independent(normal(2, 3, 2), 1),
    "normal matrix": lambda: Independent(normal(3, 2, 2), 2),
    "bernoulli vector": lambda: Independent(Bernoulli(logits=torch.randn(4, 3)), 1),
    "categorical vector": lambda: Independent(Categorical(logits=torch.randn(3, 2, 3)), 1),
    "multivariate from scale_tril": lambda: MultivariateNormal(
        torch.randn(3, 3), scale_tril=torch.linalg.cholesky(covariance(3, 3))
    ),
    "multivariate from covariance": lambda: MultivariateNormal(
        torch.randn(3, 2), covariance_matrix=covariance(3, 2)
    ),
    "multivariate from precision": lambda: MultivariateNormal(
        torch.randn(3, 2), precision_matrix=covariance(3, 2)
    ),
    "multivariate with one covariance": lambda: MultivariateNormal(
        torch.randn(3, 2), covariance_matrix=covariance(1, 2)[0]
    ),
    "product of categoricals": lambda: Product(
        [Categorical(logits=torch.randn(4, 3)), Categorical(logits=torch.randn(4, 2))]
    ),
    "product of everything": mixed,
}


def nodes(distribution):
    """Values and weights of an exact expectation of polynomials, written out per family."""
    if isinstance(distribution, Product):
        grids = [nodes(component) for component in distribution.components]
        for picks in itertools.product(*grids):
            values = [
                value if component.event_shape else value.unsqueeze(-1)
                for (value, _), component in zip(picks, distribution.components, strict=True)
            ]
            weight = torch.stack([w for _, w in picks]).prod(0)
            yield torch.cat([v.to(torch.get_default_dtype()) for v in values], -1), weight
    elif isinstance(distribution, Independent):
        # The event has few coordinates; each takes its own node.
        base, n = distribution.base_dist, distribution.event_shape.numel()
        singles = list(nodes(base))
        batch = distribution.batch_shape
        for picks in itertools.product(range(len(singles)), repeat=n):
            value = [singles[i][0].reshape(*batch, n)[..., j] for j, i in enumerate(picks)]
            weight = [singles[i][1].reshape(*batch, n)[..., j] for j, i in enumerate(picks)]
            value = torch.stack(value, -1).reshape(base.batch_shape)
            yield value, torch.stack(weight, -1).prod(-1)
    elif isinstance(distribution, (Categorical, Bernoulli)):
        for value in distribution.enumerate_support():
            yield value, distribution.log_prob(value).exp()
    else:
        x, w = (torch.as_tensor(a) for a in hermegauss(4))
        w = w / math.sqrt(2 * math.pi)
        d = distribution.event_shape.numel()
        for picks in itertools.product(range(4), repeat=d):
            noise, weight = x[list(picks)], w[list(picks)].prod()
            if isinstance(distribution, Normal):
                value = distribution.mean + distribution.stddev * noise
            else:
                factor = torch.linalg.cholesky(distribution.covariance_matrix)
                value = distribution.mean + factor @ noise
            yield value, weight.expand(distribution.batch_shape)


def per_sample(tensors, dims):
    return torch.cat([t.reshape(*t.shape[:dims], -1) for t in tensors], -1)
