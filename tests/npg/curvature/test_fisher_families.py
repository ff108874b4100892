"""Fisher matrices of policies of every family: Hessians of the KL, in any parametrisation."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.nn import functional as F

from npg.curvature import Fisher
from npg.likelihoods import Product, joint_kl
from tests.npg.oracles import TIGHT, flat, trained


class Policy(nn.Module):
    """Every family on one trunk, with parameters of its own where policies have them."""

    def __init__(self, family):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.head = nn.Linear(4, 5)
        self.free = nn.Parameter(0.3 * torch.randn(2))
        self.family = family

    def forward(self, x):
        return self.family(self.head(self.trunk(x)), self.free)


def lower(free, out):
    diagonal = torch.diag_embed(F.softplus(out[:, :2]) + 0.1)
    return diagonal + torch.tensor([[0.0, 0.0], [1.0, 0.0]]) * out[:, 2, None, None]


FIXED = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
POLICIES = {
    "categorical from probs": lambda o, f: Categorical(probs=o.softmax(-1), validate_args=False),
    "bernoulli": lambda o, f: Bernoulli(logits=o[:, 0], validate_args=False),
    "bernoulli vector": lambda o, f: Independent(Bernoulli(logits=o), 1),
    "normal": lambda o, f: Normal(o[:, 0], F.softplus(o[:, 1]) + 0.1),
    "normal with free scale": lambda o, f: Independent(
        Normal(o[:, :2], f.exp().expand(len(o), 2)), 1
    ),
    "normal with learned scale": lambda o, f: Independent(
        Normal(o[:, :2], F.softplus(o[:, 2:4]) + 0.1), 1
    ),
    "multivariate with fixed covariance": lambda o, f: MultivariateNormal(
        o[:, :2], covariance_matrix=FIXED
    ),
    "multivariate with learned scale_tril": lambda o, f: MultivariateNormal(
        o[:, :2], scale_tril=lower(f, o[:, 2:])
    ),
    "multivariate with learned covariance": lambda o, f: MultivariateNormal(
        o[:, :2], covariance_matrix=lower(f, o[:, 2:]) @ lower(f, o[:, 2:]).mT
    ),
    "product of categoricals": lambda o, f: Product(
        [Categorical(logits=o[:, :2]), Categorical(logits=o[:, 2:])]
    ),
    "mixed product": lambda o, f: Product(
        [
            Categorical(logits=o[:, :3]),
            Independent(Normal(o[:, 3:], f.exp().expand(len(o), 2)), 1),
            Bernoulli(logits=o[:, 0]),
        ]
    ),
    "categorical vector": lambda o, f: Independent(
        Categorical(logits=o[:, :4].reshape(-1, 2, 2)), 1
    ),
}


@pytest.fixture(params=sorted(POLICIES))
def policy(request):
    return Policy(POLICIES[request.param])


class TestEveryFamily:
    """Row A6 of the method list, through a network."""

    def test_fisher_is_the_hessian_of_the_mean_kl(self, policy):
        x = torch.randn(6, 3)
        parameters = trained(policy)
        old = policy(x)
        expected = []
        gradient = torch.autograd.grad(
            kl_divergence(_frozen(old), policy(x)).mean(),
            parameters,
            create_graph=True,
            materialize_grads=True,
        )
        torch.testing.assert_close(flat(gradient).detach(), torch.zeros(43), atol=1e-12, rtol=0)
        for element in flat(gradient):
            row = torch.autograd.grad(
                element, parameters, retain_graph=True, materialize_grads=True
            )
            expected.append(flat(row))
        found = Fisher(policy, lambda: policy(x)).to_dense()
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-8, atol=1e-9)

    def test_kl_is_half_the_quadratic_form_up_to_third_order(self, policy):
        x = torch.randn(6, 3)
        fisher = Fisher(policy, lambda: policy(x))
        old = fisher.prediction
        start = flat(trained(policy)).detach().clone()
        direction = torch.randn(len(start))
        model = 0.5 * float(direction @ (fisher @ direction))
        errors = []
        for scale in (2e-2, 1e-2, 5e-3):
            torch.nn.utils.vector_to_parameters(start + scale * direction, policy.parameters())
            errors.append(float(joint_kl(old, policy(x)).mean()) / scale**2 - model)
        torch.nn.utils.vector_to_parameters(start, policy.parameters())
        # (KL − ½ΔᵀFΔ)/s² = c s + O(s²): halving s halves it, and extrapolation removes it.
        assert abs(errors[2]) < 0.05 * model
        for coarse, fine in itertools.pairwise(errors):
            assert abs(2 * fine - coarse) < 0.1 * abs(fine) + 1e-3 * model

    def test_the_empirical_kind_is_the_mean_outer_product(self, policy):
        x = torch.randn(6, 3)
        targets = policy(x).sample()
        rows = torch.stack(
            [
                flat(
                    torch.autograd.grad(
                        policy(x).log_prob(targets)[i], trained(policy), materialize_grads=True
                    )
                )
                for i in range(6)
            ]
        )
        fisher = Fisher(policy, lambda: policy(x), kind="empirical", targets=targets)
        torch.testing.assert_close(fisher.to_dense(), rows.T @ rows / 6, **TIGHT)

    def test_the_sampled_kind_is_unbiased(self, policy):
        x = torch.randn(6, 3)
        exact = Fisher(policy, lambda: policy(x)).to_dense()
        x = x.repeat(20, 1)  # the same matrix, from more labels
        directions = torch.randn(3, 43)
        generator = torch.Generator().manual_seed(0)
        forms = []
        for _ in range(60):
            one = Fisher(policy, policy(x), kind="sampled", generator=generator)
            forms.append(torch.stack([d @ (one @ d) for d in directions]))
        forms = torch.stack(forms)
        expected = torch.einsum("ki,ij,kj->k", directions, exact, directions)
        error = forms.std(0) / math.sqrt(len(forms))
        assert bool(((forms.mean(0) - expected).abs() < 5 * error).all())
        assert bool((error < 0.2 * expected).all()), "the tolerance must mean something"

    def test_weights_drop_rows(self, policy):
        x, mask = torch.randn(6, 3), torch.tensor([True, True, False, True, False, True])
        full = Fisher(policy, lambda: policy(x), weights=mask)
        part = Fisher(policy, lambda: policy(x[mask]))
        torch.testing.assert_close(full.to_dense(), part.to_dense(), **TIGHT)


def _frozen(distribution):
    """A copy outside the graph, without the library under test."""
    if isinstance(distribution, Independent):
        return Independent(_frozen(distribution.base_dist), distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, Product):
        return Product([_frozen(component) for component in distribution.components])
    if isinstance(distribution, (Categorical, Bernoulli)):
        return type(distribution)(logits=distribution.logits.detach())
    if isinstance(distribution, Normal):
        return Normal(distribution.loc.detach(), distribution.scale.detach())
    return MultivariateNormal(
        distribution.loc.detach(), scale_tril=distribution.scale_tril.detach()
    )


class TestReparametrisation:
    def test_the_natural_gradient_is_one_tangent_vector(self):
        """σ and 1/σ² parametrise one family: F⁻¹g transforms as a vector, exactly, at λ = 0."""
        y = torch.randn(20) * 2 + 1
        mean, sigma = torch.tensor(0.5), torch.tensor(1.5)

        def natural(parameters, scale):
            def predict():
                return Normal(parameters[0].expand(20), scale(parameters[1]).expand(20))

            gradient = flat(torch.autograd.grad(-predict().log_prob(y).mean(), parameters))
            return torch.linalg.solve(Fisher(parameters, predict).to_dense(), gradient)

        one = [nn.Parameter(mean.clone()), nn.Parameter(sigma.clone())]
        two = [nn.Parameter(mean.clone()), nn.Parameter(sigma**-2)]
        in_sigma = natural(one, lambda s: s)
        in_precision = natural(two, lambda t: t**-0.5)
        # dσ = dσ/dτ dτ with σ = τ^(−1/2), so dσ/dτ = −½ σ³
        torch.testing.assert_close(in_precision[0], in_sigma[0], **TIGHT)
        torch.testing.assert_close(-0.5 * sigma**3 * in_precision[1], in_sigma[1], **TIGHT)

        def gap(rate):
            by_precision = (sigma**-2 - rate * in_precision[1]) ** -0.5
            return abs(float(sigma - rate * in_sigma[1] - by_precision))

        # Finite steps part by c η²: a tenth of the step, a hundredth of the gap.
        assert gap(1e-2) > 1e-6
        assert gap(1e-3) / gap(1e-2) == pytest.approx(1e-2, rel=0.1)


def test_jvps_leave_nothing_of_functorch_behind():
    """A trap of torch.func: its tensors stay in what the closure stores."""
    import copy

    policy = Policy(POLICIES["normal with learned scale"])
    x = torch.randn(6, 3)

    def predict():
        policy.action_dist = policy(x)
        return policy.action_dist

    fisher = Fisher(policy, predict)
    fisher @ torch.ones(43)
    assert type(policy.action_dist.base_dist.loc) is torch.Tensor
    assert not torch._C._functorch.is_functorch_wrapped_tensor(policy.action_dist.base_dist.loc)
    policy.action_dist = _frozen(policy.action_dist)
    copy.deepcopy(policy)
