import itertools
import math

import pytest
import torch
from curvlinops import EFLinearOperator, GGNLinearOperator
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

from npg.curvature import Fisher, Jacobian, math_attention
from npg.errors import ConfigurationError
from npg.likelihoods import Product, as_distribution, joint_kl
from tests.npg.oracles import (
    CASES,
    TIGHT,
    categorical_fisher,
    categorical_kl,
    classifier,
    flat,
    functional_hessian,
    jacobian_by_rows,
    mlp,
    trained,
)


def of_logits(model, x, **options):
    return Fisher(model, lambda: Categorical(logits=model(x), validate_args=False), **options)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"sequence input", "single input"}))
def test_exact_fisher_of_every_model(name):
    model, x = CASES[name].make()
    fisher = of_logits(model, x)
    with math_attention():
        logits = model(x)
    expected = categorical_fisher(jacobian_by_rows(logits, trained(model)), logits.detach())
    torch.testing.assert_close(fisher.to_dense(), expected, **TIGHT)
    if CASES[name].functional:
        by_kl = functional_hessian(model, x, lambda z: categorical_kl(logits.detach(), z))
        if "log-softmax" not in name and name != "rounded":  # its KL has kinks
            torch.testing.assert_close(expected, by_kl, **TIGHT)


@pytest.mark.parametrize("name", ["sequence input", "single input"])
def test_every_element_of_the_batch_is_one_sample(name):
    model, x = CASES[name].make()
    logits = model(x)
    expected = categorical_fisher(jacobian_by_rows(logits, trained(model)), logits.detach())
    torch.testing.assert_close(of_logits(model, x).to_dense(), expected, **TIGHT)


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


class TestSecondOracle:
    """curvlinops' matrices."""

    @pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
    def test_exact_is_the_ggn_of_cross_entropy(self, activation):
        model, x, y = mlp(activation), torch.randn(7, 3), torch.randint(3, (7,))
        params = trained(model)
        theirs = GGNLinearOperator(model, nn.CrossEntropyLoss(), params, [(x, y)])
        dense = theirs @ torch.eye(59)
        torch.testing.assert_close(of_logits(model, x).to_dense(), dense, **TIGHT)

    def test_empirical(self):
        model, x, y = classifier()
        params = trained(model)
        theirs = EFLinearOperator(model, nn.CrossEntropyLoss(), params, [(x, y)])
        ours = of_logits(model, x, kind="empirical", targets=y)
        torch.testing.assert_close(ours.to_dense(), theirs @ torch.eye(59), **TIGHT)

    def test_bernoulli(self):
        model, x, y = mlp(), torch.randn(7, 3), torch.rand(7, 3).round()
        params = trained(model)
        loss = nn.BCEWithLogitsLoss()  # a mean over 3 outputs too
        theirs = GGNLinearOperator(model, loss, params, [(x, y)])
        ours = Fisher(model, lambda: as_distribution(model(x), "bernoulli"))
        torch.testing.assert_close(ours.to_dense() / 3, theirs @ torch.eye(59), **TIGHT)

    @pytest.mark.parametrize("outputs", [1, 3])
    def test_mse(self, outputs):
        """likelihood="mse" has the Gauss–Newton matrix of MSELoss, at any number of outputs."""
        model, x = nn.Linear(3, outputs), torch.randn(7, 3)
        y = torch.randn(7, outputs)
        params = trained(model)
        theirs = GGNLinearOperator(model, nn.MSELoss(), params, [(x, y)])
        ours = Fisher(model, lambda: as_distribution(model(x), "mse"))
        expected = theirs @ torch.eye(4 * outputs)
        torch.testing.assert_close(ours.to_dense(), expected, **TIGHT)


class TestKinds:
    def test_same_seed_same_matrix_and_one_object_is_one_matrix(self):
        model, x, _ = classifier()

        def draw(seed):
            generator = torch.Generator().manual_seed(seed)
            return of_logits(model, x, kind="sampled", generator=generator)

        one = draw(1)
        dense = one.to_dense()
        torch.testing.assert_close(one.to_dense(), dense, rtol=0, atol=0)
        torch.testing.assert_close(draw(1).to_dense(), dense, rtol=0, atol=0)
        assert not torch.allclose(draw(2).to_dense(), dense)

    def test_kinds_differ(self):
        model, x, y = classifier()
        exact, empirical = of_logits(model, x), of_logits(model, x, kind="empirical", targets=y)
        assert not torch.allclose(exact.to_dense(), empirical.to_dense(), rtol=0.1)

    def test_empirical_is_at_the_targets_given(self):
        model, x, y = classifier()
        one = of_logits(model, x, kind="empirical", targets=y).to_dense()
        other = of_logits(model, x, kind="empirical", targets=(y + 1) % 3).to_dense()
        assert not torch.allclose(one, other)

    def test_a_prediction_with_its_graph(self):
        model, x, _ = classifier()
        prediction = Categorical(logits=model(x))
        dense = Fisher(model, prediction).to_dense()
        torch.testing.assert_close(dense, of_logits(model, x).to_dense(), rtol=0, atol=0)

    def test_the_prediction_is_evaluated_once_and_under_no_grad_too(self):
        model, x, _ = classifier()
        calls = []

        def predict():
            calls.append(1)
            return Categorical(logits=model(x))

        with torch.no_grad():
            fisher = Fisher(model, predict)
            dense = fisher.to_dense()
        assert len(calls) == 1
        torch.testing.assert_close(dense, of_logits(model, x).to_dense(), rtol=0, atol=0)

    def test_it_is_the_matrix_of_the_moment_it_was_made(self):
        """Also where the distribution's tensors are the parameters' own memory."""
        mean = nn.Linear(3, 2)
        sigma = nn.Parameter(torch.tensor([0.5, 2.0]))
        x = torch.randn(6, 3)

        def predict():
            return Independent(Normal(mean(x), sigma.expand(6, 2)), 1)

        fisher = Fisher([*mean.parameters()], predict)
        before = fisher.to_dense()
        with torch.no_grad():
            for parameter in (*mean.parameters(), sigma):
                parameter.mul_(3)
        torch.testing.assert_close(fisher.to_dense(), before, rtol=0, atol=0)


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


class TestWeights:
    def test_mean_is_over_the_weights(self):
        model, x, _ = classifier()
        w = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.5, 0.0, 3.0])
        expected = sum(
            float(w[i]) * of_logits(model, x[i : i + 1]).to_dense() for i in range(7)
        ) / float(w.sum())
        torch.testing.assert_close(of_logits(model, x, weights=w).to_dense(), expected, **TIGHT)
        for options in ({"kind": "empirical", "targets": torch.arange(7) % 3},):
            one = of_logits(model, x, weights=w, **options).to_dense()
            keep = w > 0
            part = {**options, "targets": options["targets"][keep]}
            two = of_logits(model, x[keep], weights=w[keep], **part).to_dense()
            torch.testing.assert_close(one, two, **TIGHT)

    @pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32, torch.float64])
    @pytest.mark.parametrize("precision", [torch.float32, torch.float64])
    def test_of_any_dtype(self, kind, precision):
        torch.set_default_dtype(torch.float32)
        model, x = mlp().to(precision), torch.randn(7, 3, dtype=precision)
        w = torch.tensor([1, 0, 1, 0, 0, 0, 1])
        found = of_logits(model, x, weights=w.to(kind)).to_dense()
        assert found.dtype == precision
        expected = of_logits(model, x[w.bool()]).to_dense()
        rtol = 1e-12 if precision == torch.float64 else 1e-5
        torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)

    def test_one_per_element_of_the_batch(self):
        model, x = mlp(), torch.randn(2, 4, 3)
        w = torch.rand(2, 4)
        expected = of_logits(model, x.reshape(8, 3), weights=w.flatten()).to_dense()
        torch.testing.assert_close(of_logits(model, x, weights=w).to_dense(), expected, **TIGHT)

    @pytest.mark.parametrize(
        ("weights", "words"),
        [
            (torch.ones(6), "one entry per sample"),
            (torch.ones(7, 1), "one entry per sample"),
            (torch.zeros(7), "not all zero"),
            (torch.tensor([1.0, 1, 1, 1, 1, 1, -1]), "not be negative"),
            (torch.full((7,), math.nan), "not all zero"),
        ],
    )
    def test_refusals(self, weights, words):
        model, x, _ = classifier()
        with pytest.raises(ConfigurationError, match=words):
            of_logits(model, x, weights=weights)


class TestRefusals:
    def test_arguments(self):
        model, x, y = classifier()
        with pytest.raises(ConfigurationError, match="kind must be"):
            of_logits(model, x, kind="true")
        with pytest.raises(ConfigurationError, match="without targets"):
            of_logits(model, x, kind="empirical")
        for kind in ("exact", "sampled"):
            with pytest.raises(ConfigurationError, match="with targets"):
                of_logits(model, x, kind=kind, targets=y)

    def test_a_prediction_that_does_not_depend_on_the_parameters(self):
        model, x, _ = classifier()
        with pytest.raises(ConfigurationError, match="none of the parameters"):
            Fisher(model, Categorical(logits=model(x).detach()))
        with torch.no_grad():
            prediction = Categorical(logits=model(x))
        with pytest.raises(ConfigurationError, match="gradients enabled"):
            Fisher(model, prediction)

    def test_no_samples(self):
        model = mlp()
        with pytest.raises(ConfigurationError, match="no samples"):
            of_logits(model, torch.zeros(0, 3))

    def test_an_ambiguous_normal(self):
        model, x, _ = classifier()
        with pytest.raises(ConfigurationError, match="ambiguous"):
            Fisher(model, lambda: Normal(model(x), torch.ones(7, 3)))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_float32_agrees_with_float64(activation, kind):
    model, x, y = mlp(activation), torch.randn(50, 3), torch.randint(3, (50,))
    options = {"kind": kind, "targets": y} if kind == "empirical" else {}
    double = of_logits(model, x, **options).to_dense()
    single = of_logits(model.float(), x.float(), **options).to_dense()
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-6)


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


def test_parameters_that_the_closure_holds_in_a_list():
    """A trap of functional calls: they see registered parameters only."""
    hidden = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 4))]
    x = torch.randn(5, 3)

    def logits():
        return torch.tanh(x @ hidden[0].T) @ hidden[1].T

    found = Fisher(hidden, lambda: Categorical(logits=logits())).to_dense()
    expected = categorical_fisher(jacobian_by_rows(logits(), hidden), logits().detach())
    torch.testing.assert_close(found, expected, **TIGHT)


def test_products_use_the_hand_written_path_for_a_policy():
    """Categorical's own normalisation does not hide the chain."""
    model, x, _ = classifier()
    from npg.curvature.affine_chain import AffineChain

    jacobian: Jacobian = of_logits(model, x).jacobian
    assert [type(block) for block, _ in jacobian.blocks] == [AffineChain]


def test_runs_without_device_reads():
    model, x = mlp().to("meta"), torch.empty(5, 3, device="meta")
    fisher = of_logits(model, x)
    assert (fisher + 0.1).matvec(torch.empty(59, device="meta")).shape == (59,)
