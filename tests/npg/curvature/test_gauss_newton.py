import pytest
import torch
from curvlinops import GGNLinearOperator
from torch import nn
from torch.distributions import Categorical, Normal
from torch.func import hessian
from torch.nn import functional as F

from npg.curvature import Fisher, GaussNewton, Hessian, math_attention
from npg.errors import ConfigurationError
from tests.npg.oracles import CASES, TIGHT, classifier, jacobian_by_rows, mlp, trained


@pytest.fixture(params=sorted(CASES))
def case(request):
    return CASES[request.param]


def test_any_convex_loss_of_any_model(case):
    model, x = case.make()
    with math_attention():
        output = model(x)
    y = torch.randn_like(output)

    def loss(z):
        return (z - y).pow(4).mean() + z.logsumexp(-1).sum()

    jacobian = jacobian_by_rows(output, trained(model))
    size = output.numel()
    inner = hessian(loss)(output.detach()).reshape(size, size)
    found = GaussNewton(model, lambda: model(x), loss).to_dense()
    torch.testing.assert_close(found, jacobian.T @ inner @ jacobian, **TIGHT)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
def test_curvlinops_agrees(activation, loss, reduction):
    model, x, y = mlp(activation), torch.randn(7, 3), torch.rand(7, 3)
    if loss is nn.CrossEntropyLoss:
        y = y.argmax(1)
    function = loss(reduction=reduction)
    theirs = GGNLinearOperator(model, function, trained(model), [(x, y)]) @ torch.eye(59)
    ours = GaussNewton(model, lambda: model(x), lambda z: function(z, y))
    torch.testing.assert_close(ours.to_dense(), theirs, **TIGHT)


def test_equals_the_fisher_of_a_log_likelihood_in_natural_parameters():
    model, x, y = classifier()
    gauss_newton = GaussNewton(model, lambda: model(x), lambda z: F.cross_entropy(z, y))
    fisher = Fisher(model, lambda: Categorical(logits=model(x)))
    torch.testing.assert_close(gauss_newton.to_dense(), fisher.to_dense(), **TIGHT)


def test_equals_the_hessian_of_a_linear_model():
    model, x, y = nn.Linear(3, 3), torch.randn(7, 3), torch.randint(3, (7,))
    gauss_newton = GaussNewton(model, lambda: model(x), lambda z: F.cross_entropy(z, y))
    hessian_matrix = Hessian(model, lambda: F.cross_entropy(model(x), y))
    torch.testing.assert_close(gauss_newton.to_dense(), hessian_matrix.to_dense(), **TIGHT)


def test_is_not_semi_definite_in_mean_and_scale():
    """Why the Fisher is for Normals: far from the mean, the NLL is concave in σ."""
    head = nn.Parameter(torch.tensor([0.0, 1.0]))
    y = torch.tensor([0.1])

    def nll(z):
        return -Normal(z[0], z[1], validate_args=False).log_prob(y).mean()

    indefinite = GaussNewton([head], lambda: head * 1.0, nll).to_dense()
    # ∂²/∂σ² (log σ + (y − μ)²/2σ²) at σ = 1: −1 + 3 · 0.01
    torch.testing.assert_close(indefinite[1, 1], torch.tensor(-0.97))


def test_a_loss_already_computed_from_the_output():
    model, x, y = classifier()
    output = model(x)
    found = GaussNewton(model, output, F.cross_entropy(output, y)).to_dense()
    expected = GaussNewton(model, lambda: model(x), lambda z: F.cross_entropy(z, y)).to_dense()
    torch.testing.assert_close(found, expected, **TIGHT)


def test_a_loss_linear_in_the_output_has_no_curvature():
    model, x, _ = classifier()
    assert not GaussNewton(model, lambda: model(x), lambda z: z.sum()).to_dense().any()
    output = model(x)
    assert not GaussNewton(model, output, output.sum()).to_dense().any()


def test_refuses_a_loss_of_something_else():
    model, x, y = classifier()
    with pytest.raises(ConfigurationError, match="computed from"):
        GaussNewton(model, model(x), F.cross_entropy(model(x), y))


def test_part_of_the_parameters():
    model, x, y = classifier()

    def matrix(**options):
        return GaussNewton(model, lambda: model(x), lambda z: F.cross_entropy(z, y), **options)

    part = matrix(parameters=model[4].parameters())
    torch.testing.assert_close(part.to_dense(), matrix().to_dense()[41:, 41:], **TIGHT)
