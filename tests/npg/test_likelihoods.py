import itertools
import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Exponential,
    Independent,
    MultivariateNormal,
    Normal,
    Poisson,
    kl_divergence,
)
from torch.nn import functional as F

import npg.likelihoods
from npg.curvature import Fisher
from npg.errors import ConfigurationError
from npg.likelihoods import (
    Likelihood,
    Product,
    as_distribution,
    detached,
    joint_kl,
    likelihood,
    register,
    score,
)
from tests.npg.oracles import TIGHT, flat


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


@pytest.fixture(params=sorted(FAMILIES))
def p(request):
    return FAMILIES[request.param]()


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


class TestEveryFamily:
    def test_fisher_is_the_curvature_of_the_kl(self, p):
        family = likelihood(p)
        tensors = family.tensors(p)
        start = flat(tensors)

        def kl(vector: Tensor) -> Tensor:
            pieces = vector.split([t.numel() for t in tensors])
            pieces = [v.view(t.shape) for v, t in zip(pieces, tensors, strict=True)]
            return kl_divergence(p, family.rebuild(p, tuple(pieces))).sum()

        expected = torch.autograd.functional.hessian(kl, start)
        gradient = torch.autograd.functional.jacobian(kl, start)
        torch.testing.assert_close(gradient, torch.zeros_like(start), atol=1e-10, rtol=0)
        columns = []
        for unit in torch.eye(len(start)):
            pieces = unit.split([t.numel() for t in tensors])
            tangents = tuple(v.view(t.shape) for v, t in zip(pieces, tensors, strict=True))
            columns.append(flat(family.fisher_product(p, tangents)))
        torch.testing.assert_close(torch.stack(columns, 1), expected, **TIGHT)

    def test_fisher_is_the_covariance_of_scores_with_mean_zero(self, p):
        """By enumeration or Gauss–Hermite quadrature, which is exact for these polynomials."""
        if isinstance(p, Product) and len(p.components) > 2:
            p = Product(p.components[:2])  # five would make thousands of nodes
        family, dims = likelihood(p), len(p.batch_shape)
        tensors = family.tensors(p)
        mean, second, total = 0, 0, 0
        for value, weight in nodes(p):
            s = per_sample(score(p, value), dims)
            mean = mean + weight.unsqueeze(-1) * s
            second = second + weight[..., None, None] * s.unsqueeze(-1) * s.unsqueeze(-2)
            total = total + weight
        torch.testing.assert_close(total, torch.ones(p.batch_shape), **TIGHT)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-10, rtol=0)
        tangents = tuple(torch.randn_like(t) for t in tensors)
        product = per_sample(family.fisher_product(p, tangents), dims)
        by_scores = (second @ per_sample(tangents, dims).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(product, by_scores, **TIGHT)

    def test_rebuilding_gives_the_same_distribution(self, p):
        family = likelihood(p)
        again = family.rebuild(p, family.tensors(p))
        assert type(again) is type(p)
        assert (again.batch_shape, again.event_shape) == (p.batch_shape, p.event_shape)
        value = p.sample()
        torch.testing.assert_close(again.log_prob(value), p.log_prob(value), **TIGHT)

    def test_joint_kl_is_torchs(self, p):
        family = likelihood(p)
        q = family.rebuild(p, tuple(t * 1.1 for t in family.tensors(p)))
        expected = kl_divergence(p, q)
        assert expected.shape == p.batch_shape
        assert bool((expected > 1e-5).all())
        torch.testing.assert_close(joint_kl(p, q), expected, **TIGHT)
        reverse = kl_divergence(q, p)
        assert not torch.allclose(reverse, expected)
        torch.testing.assert_close(joint_kl(q, p), reverse, **TIGHT)

    def test_detached_is_a_copy(self, p):
        family = likelihood(p)
        leaves = tuple(t.detach().clone().requires_grad_() for t in family.tensors(p))
        copy = detached(family.rebuild(p, leaves))
        value = p.sample()
        assert not copy.log_prob(value).requires_grad
        before = copy.log_prob(value).clone()
        with torch.no_grad():
            for leaf in leaves:
                leaf.mul_(2)
        torch.testing.assert_close(copy.log_prob(value), before, rtol=0, atol=0)

    def test_detached_dtype(self, p):
        copy = detached(p, torch.float32)
        assert {t.dtype for t in likelihood(copy).tensors(copy)} == {torch.float32}
        copy = detached(p)
        assert {t.dtype for t in likelihood(copy).tensors(copy)} == {torch.float64}

    def test_samples_are_reproducible(self, p):
        family = likelihood(p)

        def draw(seed):
            return family.sample(p, torch.Generator().manual_seed(seed))

        torch.testing.assert_close(draw(1), draw(1), rtol=0, atol=0)
        assert any(not torch.equal(draw(1), draw(seed)) for seed in range(2, 8))
        state = torch.get_rng_state()
        draw(3)
        assert torch.equal(torch.get_rng_state(), state), "a generator leaves the global one alone"
        torch.manual_seed(5)
        one = family.sample(p, None)
        torch.manual_seed(5)
        assert torch.equal(family.sample(p, None), one)
        assert one.shape == p.batch_shape + p.event_shape

    def test_score_is_the_gradient_of_the_log_probability(self, p):
        family = likelihood(p)
        leaves = tuple(t.detach().clone().requires_grad_() for t in family.tensors(p))
        value = p.sample()
        q = family.rebuild(p, leaves)
        expected = torch.autograd.grad(q.log_prob(value).sum(), leaves)
        with torch.no_grad():
            found = score(p, value)
        torch.testing.assert_close(found, expected, **TIGHT)


MANY = 40_000


@pytest.mark.parametrize(
    ("p", "mean", "variance"),
    [
        (Bernoulli(probs=torch.tensor([0.2])), [0.2], [0.16]),
        (Normal(torch.tensor([2.0]), torch.tensor([3.0])), [2.0], [9.0]),
        (
            Independent(Normal(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 2.0]])), 1),
            [1.0, -1.0],
            [0.25, 4.0],
        ),
        # Σ = [[4, 2], [2, 2]] has the factor [[2, 0], [1, 1]].
        (
            MultivariateNormal(
                torch.tensor([[0.0, 1.0]]), scale_tril=torch.tensor([[[2.0, 0.0], [1.0, 1.0]]])
            ),
            [0.0, 1.0],
            [4.0, 2.0],
        ),
        # mean 0.3 + 2 · 0.5 = 1.3, second moment 0.3 + 4 · 0.5 = 2.3
        (Categorical(probs=torch.tensor([[0.2, 0.3, 0.5]])), [1.3], [2.3 - 1.69]),
        (
            Product(
                [
                    Categorical(probs=torch.tensor([[0.2, 0.3, 0.5]])),
                    Normal(torch.tensor([2.0]), torch.tensor([3.0])),
                ]
            ),
            [1.3, 2.0],
            [0.61, 9.0],
        ),
    ],
    ids=lambda value: "" if isinstance(value, list) else type(value).__name__,
)
def test_samples_have_the_moments_of_the_distribution(p, mean, variance):
    family = likelihood(p)
    tensors = tuple(t.to(torch.float64).expand(MANY, *t.shape[1:]) for t in family.tensors(p))
    draws = family.sample(family.rebuild(p, tensors), torch.Generator().manual_seed(0))
    draws = draws.reshape(MANY, -1).double()
    mean, variance = torch.tensor(mean), torch.tensor(variance)
    errors = 5 * (variance / MANY).sqrt()
    assert bool(((draws.mean(0) - mean).abs() < errors).all())
    # The variance's own standard error is below √(3/N) of it for all of these.
    assert bool(((draws.var(0) / variance - 1).abs() < 5 * math.sqrt(3 / MANY)).all())


def test_multivariate_samples_are_correlated():
    """Σ = [[4, 2], [2, 2]]: the factor and its transpose differ in it."""
    factor = torch.tensor([[2.0, 0.0], [1.0, 1.0]]).expand(MANY, 2, 2)
    p = MultivariateNormal(torch.zeros(MANY, 2), scale_tril=factor)
    draws = likelihood(p).sample(p, torch.Generator().manual_seed(0))
    expected = torch.tensor([[4.0, 2.0], [2.0, 2.0]])
    torch.testing.assert_close(draws.T.cov(), expected, atol=5 * 4 * math.sqrt(2 / MANY), rtol=0)


def test_sequences_of_categories_are_drawn_in_place():
    logits = torch.full((2, 3, 4), -50.0)
    index = torch.randint(4, (2, 3, 1))
    p = Categorical(logits=logits.scatter(-1, index, 50.0))
    assert torch.equal(likelihood(p).sample(p, None), index.squeeze(-1))


class TestJointKL:
    def test_keeps_its_digits_in_float32(self):
        """Logits 1e-4 apart make a KL near 1e-9, lost in float32's log-probabilities."""
        logits = torch.randn(64, 5, dtype=torch.float32)
        new = logits + 1e-4 * torch.randn_like(logits)
        p, q = Categorical(logits=logits), Categorical(logits=new)
        a, b = p.logits.double().log_softmax(-1), q.logits.double().log_softmax(-1)
        expected = (a.exp() * (a - b)).sum(-1)
        found = joint_kl(p, q)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        assert not torch.allclose(kl_divergence(p, q).double(), expected, rtol=1e-2, atol=0)

    def test_sums_over_coordinates(self):
        """KL of N(0, 1) from N(1, 1) is ½; three coordinates make 3/2."""
        zero, one = torch.zeros(4, 3), torch.ones(4, 3)
        p, q = Independent(Normal(zero, one), 1), Independent(Normal(one, one), 1)
        torch.testing.assert_close(joint_kl(p, q), torch.full((4,), 1.5))

    def test_is_outside_the_graph(self):
        logits = torch.randn(4, 3, requires_grad=True)
        p = Categorical(logits=logits)
        assert not joint_kl(p, p).requires_grad


class TestAmbiguity:
    @pytest.mark.parametrize(
        "distribution",
        [
            Normal(torch.zeros(4, 2), torch.ones(4, 2)),
            Bernoulli(logits=torch.zeros(4, 2)),
            Independent(Normal(torch.zeros(4, 2), torch.ones(4, 2)), 0),
            Independent(Independent(Bernoulli(logits=torch.zeros(4, 2)), 0), 0),
            Product([Normal(torch.zeros(4, 2), torch.ones(4, 2))]),
        ],
    )
    def test_coordinates_or_samples_is_not_guessed(self, distribution):
        with pytest.raises(ConfigurationError, match=r"ambiguous.*Independent\(distribution, 1\)"):
            likelihood(distribution)

    def test_what_is_clear_is_accepted(self):
        two = Normal(torch.zeros(4, 2), torch.ones(4, 2))
        three = Normal(torch.zeros(4, 3, 2), torch.ones(4, 3, 2))
        for distribution in (Independent(two, 1), Independent(three, 1), Independent(three, 2)):
            assert likelihood(distribution)


class TestProduct:
    def test_matches_its_parts(self):
        p = mixed()
        a, b, c, d, e = p.components
        assert p.batch_shape == (4,)
        assert p.event_shape == (7,)
        values = [component.sample() for component in p.components]
        joined = p.join(values)
        assert joined.shape == (4, 7)
        for piece, value in zip(p.split(joined), values, strict=True):
            torch.testing.assert_close(piece, value.to(piece))
        expected = sum(x.log_prob(v) for x, v in zip(p.components, values, strict=True))
        torch.testing.assert_close(p.log_prob(joined), expected, **TIGHT)
        expected = sum(x.entropy() for x in (a, b, c, d, e))
        torch.testing.assert_close(p.entropy(), expected, **TIGHT)
        assert p.sample().shape == (4, 7)
        assert p.sample((5,)).shape == (5, 4, 7)
        assert p.log_prob(p.sample((5,))).shape == (5, 4)

    def test_integers_on_both_ends_do_not_truncate_the_middle(self):
        ends = Categorical(logits=torch.zeros(4, 3))
        p = Product([ends, normal(4), ends])
        middle = torch.tensor([0.5, -0.25, 1.75, 2.5])
        zeros = torch.zeros(4, dtype=torch.int64)
        torch.testing.assert_close(p.join([zeros, middle, zeros])[:, 1], middle)

    def test_integers_stay_integers(self):
        ends = Categorical(logits=torch.zeros(4, 3))
        assert Product([ends, ends]).sample().dtype == torch.int64

    def test_refuses_nothing_and_unequal_batches(self):
        with pytest.raises(ConfigurationError, match="at least one"):
            Product([])
        with pytest.raises(ConfigurationError, match="share a batch shape"):
            Product([Categorical(logits=torch.zeros(4, 3)), Categorical(logits=torch.zeros(5, 3))])


class TestAsDistribution:
    def test_categorical_is_the_cross_entropy(self):
        logits, y = torch.randn(6, 3), torch.randint(3, (6,))
        p = as_distribution(logits, "categorical")
        torch.testing.assert_close(-p.log_prob(y).mean(), F.cross_entropy(logits, y), **TIGHT)

    @pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 2, 3)])
    def test_others_have_one_sample_per_row(self, shape):
        output = torch.randn(shape)
        for name in ("bernoulli", "normal", "mse"):
            p = as_distribution(output, name)
            assert p.batch_shape == (6,)
            assert p.event_shape == shape[1:]
            assert likelihood(p)
        y = torch.bernoulli(torch.full(shape, 0.5))
        found = as_distribution(output, "bernoulli").log_prob(y).sum()
        expected = -F.binary_cross_entropy_with_logits(output, y, reduction="sum")
        torch.testing.assert_close(found, expected, **TIGHT)
        y = torch.randn(shape)
        two = [as_distribution(output, "normal").log_prob(v).mean() for v in (y, output)]
        half = 0.5 * (output - y).square().sum() / 6
        torch.testing.assert_close(two[1] - two[0], half, **TIGHT)
        two = [as_distribution(output, "mse").log_prob(v).mean() for v in (y, output)]
        torch.testing.assert_close(two[1] - two[0], F.mse_loss(output, y), **TIGHT)

    def test_callable_and_distribution(self):
        output = torch.randn(6, 2)
        p = as_distribution(output, lambda o: Normal(o[:, 0], F.softplus(o[:, 1])))
        assert isinstance(p, Normal)
        assert as_distribution(p, "categorical") is p

    @pytest.mark.parametrize("family", [None, "gaussian"])
    def test_a_bare_tensor_is_not_guessed(self, family):
        with pytest.raises(ConfigurationError, match=r"likelihood=.*categorical"):
            as_distribution(torch.randn(6, 2), family)

    @pytest.mark.parametrize("name", ["bernoulli", "normal", "mse"])
    def test_an_empty_batch_is_no_index_error(self, name):
        assert as_distribution(torch.zeros(0, 3), name).batch_shape == (0,)


class PoissonLikelihood(Likelihood[Poisson]):
    """Fisher in the rate: 1/r."""

    def tensors(self, distribution):
        return (distribution.rate,)

    def rebuild(self, distribution, tensors):
        return Poisson(tensors[0], validate_args=False)

    def fisher_product(self, distribution, tangents):
        return (tangents[0] / distribution.rate,)

    def sample(self, distribution, generator):
        return torch.poisson(distribution.rate, generator)


class TestRegister:
    def test_a_new_family_serves_every_matrix(self, monkeypatch):
        registry = npg.likelihoods.registry
        monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
        model, x = nn.Linear(2, 1), torch.randn(50, 2)

        def predict():
            return Poisson(model(x).squeeze(-1).exp(), validate_args=False)

        with pytest.raises(ConfigurationError, match=r"Poisson.*register"):
            Fisher(model, predict)
        register(Poisson, PoissonLikelihood())
        # In θ of log r = θ·x the Fisher is the mean of r x xᵀ, x with a one for the bias.
        inputs = torch.cat([x, torch.ones(50, 1)], 1)
        expected = (inputs * predict().rate.detach().unsqueeze(1)).T @ inputs / 50
        torch.testing.assert_close(Fisher(model, predict).to_dense(), expected, **TIGHT)
        generator = torch.Generator().manual_seed(0)
        draws = [
            Fisher(model, predict, kind="sampled", generator=generator).to_dense()
            for _ in range(400)
        ]
        stack = torch.stack(draws)
        error = stack.std(0) / math.sqrt(400)
        assert bool(((stack.mean(0) - expected).abs() < 5 * error).all())
        p, q = predict(), Poisson(predict().rate * 1.1)
        torch.testing.assert_close(joint_kl(p, q), kl_divergence(p, q).detach(), **TIGHT)

    def test_subclasses_use_the_nearest_base(self, monkeypatch):
        registry = npg.likelihoods.registry
        monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

        class Policy(Categorical):
            pass

        assert likelihood(Policy(logits=torch.zeros(4, 3))) is likelihood(
            Categorical(logits=torch.zeros(4, 3))
        )
        own = npg.likelihoods.families.CategoricalLikelihood()
        register(Policy, own)
        assert likelihood(Policy(logits=torch.zeros(4, 3))) is own

    def test_unknown_families_are_named(self):
        with pytest.raises(ConfigurationError, match=r"Exponential.*Categorical.*register"):
            likelihood(Exponential(torch.ones(3)))
        with pytest.raises(ConfigurationError, match="Exponential"):
            likelihood(Independent(Exponential(torch.ones(3, 2)), 1))
        with pytest.raises(ConfigurationError, match="Exponential"):
            likelihood(Product([Exponential(torch.ones(3))]))
