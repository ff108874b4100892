import copy
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import NewtonCG
from tests.npg.optim.helpers import snapshot
from tests.npg.oracles import flat, functional_jacobian, mlp, trained

# The system solved to the end, and the step of its solution.
PLAIN = {"cg_progress_tolerance": None, "cg_backtracking": False, "warm_start": None}
EXACT = {"cg_max_steps": 300, "cg_tolerance": 1e-14, **PLAIN}


def regression(model, n=30):
    x = torch.randn(n, 3)
    y = torch.randn(n, model(x).shape[1])

    def closure():
        output = model(x)
        return F.mse_loss(output, y), output

    return x, y, closure


class TestOneStep:
    def test_solves_a_linear_model(self):
        """Undamped but for 1e-8, one step is the least-squares solution of numpy and scipy."""
        model = nn.Linear(3, 1)
        x, y, closure = regression(model)
        report = NewtonCG(model, damping=1e-8, **EXACT).step(closure)
        inputs = np.hstack([x.numpy(), np.ones((30, 1))])
        solution, residual, *_ = np.linalg.lstsq(inputs, y.numpy(), rcond=None)
        np.testing.assert_allclose(snapshot(model), solution[:, 0], rtol=1e-6)
        again = scipy.optimize.least_squares(
            lambda w: inputs @ w - y.numpy()[:, 0], np.zeros(4), method="lm"
        )
        np.testing.assert_allclose(snapshot(model), again.x, rtol=1e-5)
        assert report.loss_after == pytest.approx(float(residual[0]) / 30, rel=1e-10)
        assert report.accepted

    @pytest.mark.parametrize("damping", [1.0, 0.01])
    def test_is_the_damped_dense_step(self, damping):
        model = mlp()
        x, y, closure = regression(model)
        jacobian, start = functional_jacobian(model, x), snapshot(model)
        matrix = 2 / y.numel() * jacobian.T @ jacobian + damping * torch.eye(59)
        gradient = 2 / y.numel() * jacobian.T @ (model(x) - y).detach().flatten()
        report = NewtonCG(model, lr=0.5, damping=damping, **EXACT).step(closure)
        assert report.fraction == 1.0
        expected = start - 0.5 * torch.linalg.solve(matrix, gradient)
        torch.testing.assert_close(snapshot(model), expected, rtol=1e-7, atol=1e-9)
        assert report.damping == damping
        assert report.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-10)

    def test_rates_multiply_each_groups_part(self):
        model = mlp()
        _, _, closure = regression(model)
        start = snapshot(model)
        assert NewtonCG(model, lr=0.01, damping=1.0, **EXACT).step(closure).fraction == 1.0
        step = (snapshot(model) - start) / 0.01
        torch.nn.utils.vector_to_parameters(start.clone(), model.parameters())
        groups = [
            {"params": trained(model)[:2], "lr": 0.1},
            {"params": trained(model)[2:], "lr": 0.02},
        ]
        assert NewtonCG(groups, damping=1.0, **EXACT).step(closure).fraction == 1.0
        rates = torch.cat([torch.full((16,), 0.1), torch.full((43,), 0.02)])
        torch.testing.assert_close(snapshot(model), start + rates * step, rtol=1e-8, atol=1e-10)

    def test_conjugate_gradient_is_bounded(self):
        model = mlp()
        _, _, closure = regression(model)
        report = NewtonCG(model, damping=1e-6, cg_max_steps=4, cg_tolerance=0.0).step(closure)
        assert report.cg_iterations == 4
        report = NewtonCG(model, damping=1e-6, cg_max_steps=500, cg_tolerance=0.3).step(closure)
        assert 0.01 < report.cg_residual <= 0.3


class TestDamping:
    @pytest.mark.parametrize("lr", [1.0, 0.5, 0.1])
    def test_a_right_model_lowers_it_at_every_rate(self, lr):
        """On a linear model the quadratic is exact, so ρ = 1 for any length of the step."""
        model = nn.Linear(3, 2)
        _, _, closure = regression(model)
        optimizer = NewtonCG(model, lr=lr, damping=0.1, damping_factor=2.0, **EXACT)
        used = [optimizer.step(closure).damping for _ in range(4)]
        assert used == pytest.approx([0.1, 0.05, 0.025, 0.0125])

    def test_also_with_different_rates(self):
        model = nn.Linear(3, 2)
        _, _, closure = regression(model)
        groups = [{"params": [model.weight], "lr": 0.3}, {"params": [model.bias], "lr": 0.05}]
        optimizer = NewtonCG(groups, damping=0.1, damping_factor=2.0, **EXACT)
        used = [optimizer.step(closure).damping for _ in range(3)]
        assert used == pytest.approx([0.1, 0.05, 0.025])

    def test_follows_the_ratio(self):
        """ρ recomputed from the dense quadratic, on a curved problem."""
        model = mlp()
        x, y, closure = regression(model)
        optimizer = NewtonCG(model, damping=1e-4, damping_factor=3.0, **EXACT)
        changes = set()
        for _ in range(12):
            jacobian, start = functional_jacobian(model, x), snapshot(model)
            matrix = 2 / y.numel() * jacobian.T @ jacobian
            gradient = 2 / y.numel() * jacobian.T @ (model(x) - y).detach().flatten()
            damping = optimizer.schedule.damping
            step = -torch.linalg.solve(matrix + damping * torch.eye(59), gradient)
            torch.nn.utils.vector_to_parameters(start + step, model.parameters())
            full = float(closure()[0].detach())
            torch.nn.utils.vector_to_parameters(start, model.parameters())
            before = float(closure()[0].detach())
            ratio = (full - before) / float(gradient @ step + 0.5 * step @ matrix @ step)
            optimizer.step(closure)
            change = optimizer.schedule.damping / damping
            expected = 3.0 if ratio < 0.25 else 1 / 3 if ratio > 0.75 else 1.0
            assert change == pytest.approx(expected)
            changes.add(round(change, 3))
        assert len(changes) > 1, "the problem must exercise both directions"


class TestSafety:
    def test_the_loss_never_rises(self):
        model = mlp()
        _, _, closure = regression(model)
        optimizer = NewtonCG(model, damping=1e-6)
        losses = []
        for _ in range(30):
            report = optimizer.step(closure)
            losses.append(report.loss)
            assert report.loss_after <= report.loss
            assert float(closure()[0]) == pytest.approx(report.loss_after, rel=1e-12)
        assert losses[-1] < 0.5 * losses[0]

    def test_a_failed_search_restores_and_raises_the_damping(self):
        model = mlp()
        x, y, _ = regression(model)
        start = snapshot(model)
        calls = []

        def closure():
            calls.append(torch.is_grad_enabled())
            output = model(x)
            loss = F.mse_loss(output, y)
            return (loss if len(calls) == 1 else loss + 10), output

        optimizer = NewtonCG(
            model,
            damping=0.1,
            damping_factor=2.0,
            line_search_max_iter=3,
            deterministic=False,
            **PLAIN,
        )
        report = optimizer.step(closure)
        assert calls == [True, False, False, False]
        assert not report.accepted
        assert report.reason == "line search failed"
        assert report.loss_after == report.loss
        assert torch.equal(snapshot(model), start)
        assert optimizer.schedule.damping == 0.2
        assert optimizer.extra["rejected"] == 1

    @pytest.mark.parametrize("factor", [math.nan, math.inf, 0.0])
    def test_skips(self, factor):
        model = mlp()
        x, y, _ = regression(model)
        start = snapshot(model)

        def closure():
            output = model(x)
            return F.mse_loss(output, y) * factor, output

        optimizer = NewtonCG(model, damping=0.1)
        report = optimizer.step(closure)
        assert ("zero gradient" if factor == 0 else "not finite") in report.reason
        assert torch.equal(snapshot(model), start)
        assert optimizer.extra["skipped"] == 1
        assert optimizer.schedule.damping == 0.1


class TestClosures:
    def test_torchs_own_is_told_what_to_change(self):
        model = mlp()
        x, y, _ = regression(model)
        optimizer = NewtonCG(model)

        def torchs():
            loss = F.mse_loss(model(x), y)
            loss.backward()
            return loss

        with pytest.raises(ConfigurationError, match=r"NewtonCG.*no backward\(\)"):
            optimizer.step(torchs)

    def test_a_distribution_is_no_output(self):
        model = mlp()

        def closure():
            p = Categorical(logits=model(torch.randn(4, 3)))
            return p.entropy().mean(), p

        with pytest.raises(ConfigurationError, match="tensor prediction"):
            NewtonCG(model).step(closure)

    def test_the_loss_must_be_that_of_the_output(self):
        model = mlp()
        x, y, _ = regression(model)
        with pytest.raises(ConfigurationError, match="computed from"):
            NewtonCG(model).step(lambda: (F.mse_loss(model(x), y), model(x)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": -1.0}, "lr must be in"),
        ({"lr": math.inf}, "lr must be in"),
        ({"damping": -1.0}, "damping"),
        ({"matrix": "newton"}, "matrix must be"),
        ({"cg_preconditioner": "jacobi"}, "cg_preconditioner must be"),
        ({"warm_start": 1.5}, "warm_start must be"),
        ({"cg_tolerance": -1.0}, "cg_tolerance must"),
        ({"damping": 0.0, "kronecker_cg_max_steps": 3}, "damping above 0"),
        ({"damping_factor": 1.0}, "factor > 1"),
        ({"cg_max_steps": 0}, "at least 1"),
        ({"line_search_max_iter": 0}, "at least 1"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        NewtonCG(mlp(), **settings)


class TestKroneckerFactors:
    def value_problem(self):
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        x, y = torch.randn(60, 3), torch.randn(60, 1)

        def closure():
            values = model(x)
            return F.mse_loss(values, y), values

        return model, closure

    def test_the_same_step_if_solved_to_the_end(self):
        model, closure = self.value_problem()
        start = copy.deepcopy(model.state_dict())
        steps = []
        for limit in (None, 500):
            model.load_state_dict(start)
            optimizer = NewtonCG(
                model,
                damping=1e-3,
                cg_tolerance=1e-12,
                cg_max_steps=500,
                kronecker_cg_max_steps=limit,
                **PLAIN,
            )
            assert optimizer.step(closure).reason == "converged"
            steps.append(snapshot(model))
        torch.testing.assert_close(steps[1], steps[0], rtol=1e-6, atol=1e-8)

    def test_the_limit_is_kept_and_only_where_it_applies(self):
        model, closure = self.value_problem()
        settings = {"cg_tolerance": 0.0, "cg_max_steps": 7, "kronecker_cg_max_steps": 2}
        assert NewtonCG(model, **settings).step(closure).cg_iterations == 2
        other = mlp()
        assert NewtonCG(other, **settings).step(regression(other)[2]).cg_iterations == 7

    def test_the_damping_has_a_floor(self):
        model = nn.Linear(3, 2)
        _, _, closure = regression(model)
        optimizer = NewtonCG(model, damping=0.1, damping_factor=2.0, min_damping=0.04, **EXACT)
        used = [optimizer.step(closure).damping for _ in range(4)]
        assert used == pytest.approx([0.1, 0.05, 0.04, 0.04])

    @pytest.mark.parametrize("bad", [{"kronecker_cg_max_steps": 0}, {"min_damping": 2.0}])
    def test_bad_settings(self, bad):
        with pytest.raises(ConfigurationError):
            NewtonCG(nn.Linear(3, 1), **bad)


class TestGradient:
    """It comes by way of the output where that is all of it, and from autograd where it is not."""

    @pytest.mark.parametrize("penalty", [0.0, 0.3])
    @pytest.mark.parametrize("last", ["output", "scaled", "chunk"])
    def test_is_that_of_the_loss(self, penalty, last):
        model = mlp()
        x, y = torch.randn(20, 3), torch.randn(20, 3)

        def closure():
            output = model(x)
            loss = F.mse_loss(output, y)
            if last == "scaled":  # another operation in between
                output = output * 2
                loss = F.mse_loss(output, y)
            if last == "chunk":  # the loss sees a sibling of the output, too
                output, sibling = output.split([2, 1], 1)
                loss = output.square().mean() + sibling.square().mean()
            return loss + penalty * sum(p.square().sum() for p in model.parameters()), output

        start = snapshot(model)
        expected = flat(torch.autograd.grad(closure()[0], list(model.parameters())))
        report = NewtonCG(model, damping=1e6, min_damping=1e-8, lr=1e3, **EXACT).step(closure)
        assert report.gradient_norm == pytest.approx(float(expected.norm()), rel=1e-10)
        moved = (start - snapshot(model)) / report.fraction * 1e3  # ≈ the gradient: λ is large
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-5)


class Detached(torch.autograd.Function):
    """An activation whose backward pass leaves no graph, as one that goes through NumPy."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return (g * (1 - y * y)).detach()


class TestGradientElsewhere:
    @pytest.mark.parametrize("kind", ["detached", "hook"])
    def test_is_autograds_where_the_jacobian_is_not_the_whole_story(self, kind):
        first, last = nn.Linear(3, 4), nn.Linear(4, 1)
        if kind == "hook":
            first.weight.register_hook(lambda g: g * 3)
        x, y = torch.randn(20, 3), torch.randn(20, 1)
        activation = Detached.apply if kind == "detached" else torch.tanh

        def closure():
            output = last(activation(first(x)))
            return F.mse_loss(output, y), output

        parameters = [*first.parameters(), *last.parameters()]
        expected = flat(torch.autograd.grad(closure()[0], parameters))
        report = NewtonCG(parameters).step(closure)
        assert report.gradient_norm == pytest.approx(float(expected.norm()), rel=1e-10)

    def test_a_closure_that_went_backward_is_told_not_to(self):
        model = mlp()
        x, y, _ = regression(model)

        def closure():
            output = model(x)
            loss = F.mse_loss(output, y)
            loss.backward()
            return loss, output

        with pytest.raises(ConfigurationError, match="no backward"):
            NewtonCG(model).step(closure)

    def test_a_loaded_damping_respects_the_floor(self):
        state = NewtonCG(nn.Linear(2, 1), damping=1e-5).state_dict()
        optimizer = NewtonCG(nn.Linear(2, 1), damping=0.1, min_damping=0.02)
        optimizer.load_state_dict(state)
        assert optimizer.schedule.damping == 0.02

    def test_parameters_beside_the_chain_move_as_well(self):
        model, other = (
            nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
            nn.Parameter(torch.ones(4)),
        )
        x, y = torch.randn(20, 3), torch.randn(20, 1)

        def closure():
            output = model(x)
            return F.mse_loss(output, y) + 0.1 * other.square().sum(), output

        NewtonCG([*model.parameters(), other], damping=0.1, kronecker_cg_max_steps=20).step(closure)
        moved = other.detach()  # there the matrix is λI, so that the step is −g/λ = −0.2/0.1
        torch.testing.assert_close(moved, -torch.ones(4), rtol=1e-2, atol=0.0)
