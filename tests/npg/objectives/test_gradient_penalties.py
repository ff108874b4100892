"""Penalties against closed forms, torch.func, and the flow that descent follows."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.objectives import (
    double_backpropagation,
    implicit_gradient_regularisation,
    input_gradient_penalty,
    parameter_gradient_penalty,
)
from npg.optim import KFAC, create, train_step
from tests.npg.oracles import TIGHT, mlp


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


@pytest.fixture
def batch():
    return torch.randn(6, 3), torch.randint(3, (6,))


def sample_gradients(model, x, y):
    """∇ₓ ℓₙ [N, d], by torch.func, one sample at a time."""
    parameters = dict(model.named_parameters())

    def loss(row, label):
        return F.cross_entropy(functional_call(model, parameters, (row[None],)), label[None])

    return vmap(grad(loss))(x, y)


class TestInputs:
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_every_reduction_is_the_mean_over_samples(self, batch, reduction):
        model, (x, y) = mlp(), batch
        expected = 0.3 * sample_gradients(model, x, y).square().sum(1).mean()
        x.requires_grad_()
        loss = F.cross_entropy(model(x), y, reduction=reduction)
        how = {} if reduction == "none" else {"reduction": reduction}
        torch.testing.assert_close(input_gradient_penalty(loss, x, 0.3, **how), expected, **TIGHT)

    def test_linear_least_squares_by_hand(self):
        """ℓ = ½(wᵀx − y)²: ‖∇ₓℓ‖² = (wᵀx − y)² ‖w‖², whose derivative in w is written out."""
        w, x, y = torch.randn(3, requires_grad=True), torch.randn(5, 3), torch.randn(5)
        x.requires_grad_()
        residual = x @ w - y
        penalty = input_gradient_penalty(residual.square() / 2, x, 2.0)
        r, v = residual.detach(), w.detach()
        torch.testing.assert_close(penalty.detach(), 2 * (r.square() * v.square().sum()).mean())
        (slope,) = torch.autograd.grad(penalty, w)
        through_r = (2 * r[:, None] * x.detach() * v.square().sum()).mean(0)
        through_norm = (r.square()[:, None] * 2 * v).mean(0)
        torch.testing.assert_close(slope, 2 * (through_r + through_norm), **TIGHT)

    def test_logistic_regression_by_hand(self):
        """ℓ = −log p(y): ‖∇ₓℓ‖² = (σ(wᵀx) − y)² ‖w‖²."""
        w, x, y = torch.randn(3), torch.randn(5, 3), torch.tensor([0.0, 1, 1, 0, 1])
        expected = ((x @ w).sigmoid() - y).square().mean() * w.square().sum()
        x.requires_grad_()
        loss = F.binary_cross_entropy_with_logits(x @ w, y)
        torch.testing.assert_close(input_gradient_penalty(loss, x, 1.0), expected, **TIGHT)

    def test_several_inputs_are_one(self, batch):
        model, (x, y) = mlp(), batch
        whole = x.clone().requires_grad_()
        expected = input_gradient_penalty(F.cross_entropy(model(whole), y), whole, 1.0)
        left, right = x[:, :1].clone().requires_grad_(), x[:, 1:].clone().requires_grad_()
        unused = torch.randn(6, 2, requires_grad=True)
        loss = F.cross_entropy(model(torch.cat([left, right], 1)), y)
        found = input_gradient_penalty(loss, (t for t in (left, unused, right)), 1.0)
        torch.testing.assert_close(found, expected, **TIGHT)

    def test_it_does_not_depend_on_the_batch_size(self, batch):
        model, (x, y) = mlp(), batch
        values = []
        for repeats in (1, 3):
            inputs = x.repeat(repeats, 1).requires_grad_()
            loss = F.cross_entropy(model(inputs), y.repeat(repeats))
            values.append(input_gradient_penalty(loss, inputs, 1.0))
        torch.testing.assert_close(*values, **TIGHT)

    def test_gradcheck(self):
        def value(x, w):
            return input_gradient_penalty(((x @ w).tanh() - 1).square().sum(1), x, 0.5)

        x, w = torch.randn(4, 3, requires_grad=True), torch.randn(3, 2, requires_grad=True)
        assert torch.autograd.gradcheck(value, (x, w))

    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (
                lambda loss, x: input_gradient_penalty(loss, torch.randn(6, 3), 1.0),
                "requires_grad_",
            ),
            (lambda loss, x: input_gradient_penalty(loss, [], 1.0), "requires_grad_"),
            (lambda loss, x: input_gradient_penalty(loss, x.clone(), 1.0), "very tensors"),
            (lambda loss, x: input_gradient_penalty(loss.expand(2), x, 1.0), "6 samples"),
            (lambda loss, x: input_gradient_penalty(loss, x, -1.0), "weight"),
            (lambda loss, x: input_gradient_penalty(loss, x, math.nan), "weight"),
            (lambda loss, x: input_gradient_penalty(loss.detach(), x, 1.0), "double_backprop"),
            (lambda loss, x: input_gradient_penalty(loss, x, 1.0, reduction="none"), "shape"),
        ],
    )
    def test_errors(self, batch, call, says):
        model, (x, y) = mlp(), batch
        x.requires_grad_()
        with pytest.raises(ConfigurationError, match=says):
            call(F.cross_entropy(model(x), y), x)


class TestParameters:
    def test_against_torch_func(self, batch):
        model, (x, y) = mlp(), batch
        parameters = dict(model.named_parameters())

        def loss_of(values):
            return F.cross_entropy(functional_call(model, values, (x,)), y)

        def penalty_of(values):
            return 0.2 * sum(g.square().sum() for g in grad(loss_of)(values).values())

        penalty = parameter_gradient_penalty(F.cross_entropy(model(x), y), model, 0.2)
        torch.testing.assert_close(penalty, penalty_of(parameters), **TIGHT)
        found = torch.autograd.grad(penalty, list(parameters.values()))
        expected = grad(penalty_of)(parameters)
        torch.testing.assert_close(list(found), list(expected.values()), **TIGHT)

    def test_its_gradient_is_twice_hessian_times_gradient(self):
        """L = ½ θᵀHθ: ‖∇L‖² = θᵀH²θ, with gradient 2H²θ."""
        root = torch.randn(4, 4)
        h, theta = root @ root.T, torch.randn(4, requires_grad=True)
        penalty = parameter_gradient_penalty(theta @ h @ theta / 2, [theta], 0.5)
        (slope,) = torch.autograd.grad(penalty, theta)
        torch.testing.assert_close(slope, h @ h @ theta.detach(), **TIGHT)

    def test_frozen_and_unused_parameters_are_left_out(self, batch):
        model, (x, y) = mlp(), batch
        model[0].requires_grad_(False)
        model.spare = nn.Parameter(torch.randn(3))
        loss = F.cross_entropy(model[:5](x), y)
        trained = [p for layer in (model[2], model[4]) for p in layer.parameters()]
        expected = sum(
            g.square().sum() for g in torch.autograd.grad(loss, trained, retain_graph=True)
        )
        torch.testing.assert_close(parameter_gradient_penalty(loss, model, 1.0), expected, **TIGHT)

    def test_errors(self, batch):
        model, (x, y) = mlp(), batch
        losses = F.cross_entropy(model(x), y, reduction="none")
        with pytest.raises(ConfigurationError, match="scalar"):
            parameter_gradient_penalty(losses, model, 1.0)
        with pytest.raises(ConfigurationError, match="none of them"):
            parameter_gradient_penalty(losses.mean(), mlp(), 1.0)
        with pytest.raises(ConfigurationError, match="none of them"):
            parameter_gradient_penalty(losses.mean(), [], 1.0)
        with pytest.raises(ConfigurationError, match="weight"):
            parameter_gradient_penalty(losses.mean(), model, math.inf)


class TestImplicitRegularisation:
    @pytest.mark.parametrize("curvature", [0.3, 2.0])
    def test_descent_follows_its_flow(self, curvature):
        """L = ½hθ²: the modified loss is ½(h + ½ηh²)θ², whose flow of time η ends at
        exp(−ηh − η²h²/2) θ; a step of descent at (1 − ηh) θ. The gap is (ηh)³/3 + O(η⁴), where the
        flow of L itself is off by (ηh)²/2."""
        theta = torch.tensor(1.0, requires_grad=True)
        lr = 1e-3 / curvature
        modified = implicit_gradient_regularisation(curvature * theta**2 / 2, [theta], lr)
        (slope,) = torch.autograd.grad(modified, theta)
        torch.testing.assert_close(
            slope, torch.tensor(curvature + lr * curvature**2 / 2), rtol=1e-14, atol=0
        )
        gap = math.exp(-lr * float(slope)) - (1 - lr * curvature)
        assert gap == pytest.approx((lr * curvature) ** 3 / 3, rel=5e-3)

    def test_order_of_the_gap_on_a_network(self, batch):
        """Descent against SciPy's integration of both flows: the modified one is closer."""
        integrate = pytest.importorskip("scipy.integrate")
        model, (x, y) = mlp(), batch
        names = [name for name, _ in model.named_parameters()]
        sizes = [p.numel() for p in model.parameters()]
        shapes = [p.shape for p in model.parameters()]

        def slope(vector, lr):
            pieces = [
                v.view(s).requires_grad_() for v, s in zip(vector.split(sizes), shapes, strict=True)
            ]
            logits = functional_call(model, dict(zip(names, pieces, strict=True)), (x,))
            loss = F.cross_entropy(logits, y)
            if lr:
                loss = implicit_gradient_regularisation(loss, pieces, lr)
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, pieces)])

        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        gaps = {}
        for lr in (0.2, 0.1):
            descended = start - lr * slope(start.clone(), 0)
            for modified in (0, lr):
                flow = integrate.solve_ivp(
                    lambda _, v, m=modified: -slope(torch.tensor(v), m).numpy(),
                    (0, lr),
                    start.numpy(),
                    rtol=1e-11,
                    atol=1e-13,
                )
                end = torch.tensor(flow.y[:, -1])
                gaps[lr, bool(modified)] = float(torch.linalg.vector_norm(end - descended))
        assert gaps[0.2, False] / gaps[0.1, False] == pytest.approx(4, rel=0.15)
        assert gaps[0.2, True] / gaps[0.1, True] == pytest.approx(8, rel=0.15)

    def test_errors(self):
        theta = torch.ones(2, requires_grad=True)
        with pytest.raises(ConfigurationError, match="lr"):
            implicit_gradient_regularisation(theta.sum(), [theta], -1.0)


class TestAttention:
    def test_the_fused_kernel_is_refused_with_the_remedy(self):
        model, x = Attention(), torch.randn(2, 5, 4, requires_grad=True)
        with pytest.raises(ConfigurationError, match="double_backpropagation"):
            input_gradient_penalty(model(x).square().sum(), x, 1.0)

    def test_the_math_kernel_is_differentiated(self):
        model, x = Attention(), torch.randn(2, 5, 4, requires_grad=True)

        def value(inputs):
            with double_backpropagation():
                return input_gradient_penalty(model(inputs).square().sum(1), inputs, 1.0)

        assert torch.autograd.gradcheck(value, (x,))


class TestClosures:
    @pytest.mark.parametrize(
        "name", ["sgd", "adahessian", "kfac", "natural-gradient", "newton-cg", "loss-flow"]
    )
    def test_a_penalised_loss_falls_however_the_optimizer_is_driven(self, name, batch):
        """Line searches evaluate closures without gradients, curvature differentiates once more."""
        model, (x, y) = mlp(), batch
        x.requires_grad_()
        options = {"likelihood": "categorical"} if name in ("kfac", "natural-gradient") else {}
        optimizer = create(name, model, **options)

        def forward():
            with double_backpropagation():
                logits = model(x)
                loss = F.cross_entropy(logits, y)
                penalty = input_gradient_penalty(loss, x, 0.1)
                return loss + penalty + parameter_gradient_penalty(loss, model, 0.01), logits

        before = float(forward()[0].detach())
        for _ in range(5):
            train_step(optimizer, forward)
        assert float(forward()[0].detach()) < before

    def test_no_graph_names_the_context(self, batch):
        model, (x, y) = mlp(), batch
        with torch.no_grad(), pytest.raises(ConfigurationError, match="double_backpropagation"):
            parameter_gradient_penalty(F.cross_entropy(model(x), y), model, 1.0)


class TestPlainLoop:
    @pytest.mark.parametrize("fisher", ["sampled", "exact"])
    @pytest.mark.parametrize("penalty", ["inputs", "parameters"])
    def test_kfac_hears_the_prediction_once(self, batch, fisher, penalty):
        """The penalty's own backward pass reaches K-FAC's hooks as well."""
        torch.manual_seed(3)
        models = [mlp(), mlp()]
        models[1].load_state_dict(models[0].state_dict())
        x, y = batch
        moments = []
        for model, penalised in zip(models, (False, True), strict=True):
            optimizer = KFAC(model, likelihood="categorical", fisher=fisher)
            x.requires_grad_()
            loss = F.cross_entropy(model(x), y)
            if penalised and penalty == "inputs":
                loss = loss + input_gradient_penalty(loss, x, 0.1)
            elif penalised:
                loss = loss + parameter_gradient_penalty(loss, model, 0.1)
            loss.backward()
            optimizer.step()
            moments.append(optimizer.state_dict()["kfac"]["fisher"])
        torch.testing.assert_close(*moments, **TIGHT)
