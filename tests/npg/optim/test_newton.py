import copy
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn
from torch.nn import functional as F

from npg.optim import GaussNewton, Newton
from tests.npg.optim.helpers import snapshot
from tests.npg.optim.newton_problems import BOTH, classification, of_point, regression, rosenbrock
from tests.npg.oracles import functional_hessian, functional_jacobian, mlp, trained


class TestOneStep:
    @BOTH
    def test_solves_a_linear_model(self, kind):
        model = nn.Linear(3, 1)
        x, y, closure = regression(model)
        report = kind(model).step(closure)
        inputs = np.hstack([x.numpy(), np.ones((30, 1))])
        solution, residual, *_ = np.linalg.lstsq(inputs, y.numpy(), rcond=None)
        np.testing.assert_allclose(snapshot(model), solution[:, 0], rtol=1e-10)
        assert report.loss_after == pytest.approx(float(residual[0]), rel=1e-12)
        assert (report.accepted, report.damping, report.reason) == (True, 0.0, "undamped")
        assert report.reduction_ratio == pytest.approx(1.0)
        assert report.evaluations == 3  # the loss, the same once more, the trial

    @pytest.mark.parametrize("radius", [1e-3, 0.1])
    def test_newtons_is_the_damped_dense_step(self, radius):
        """Whatever λ is reported, the step is −(H + λI)⁻¹g with it, and as long as the radius."""
        model = mlp()
        x, y, closure = classification(model)
        hessian = functional_hessian(model, x, lambda z: F.cross_entropy(z, y))
        self.check(Newton(model, radius=radius), model, closure, hessian, radius)

    @pytest.mark.parametrize("radius", [1e-3, 0.1])
    def test_gauss_newtons_is_the_damped_dense_step(self, radius):
        model = mlp()
        x, _, closure = regression(model)
        jacobian = functional_jacobian(model, x)
        matrix = 2 * jacobian.T @ jacobian
        self.check(GaussNewton(model, radius=radius), model, closure, matrix, radius)

    def check(self, optimizer, model, closure, matrix, radius):
        start = snapshot(model)
        gradient = torch.cat(
            [g.flatten() for g in torch.autograd.grad(closure()[0], trained(model))]
        )
        report = optimizer.step(closure)
        damped = matrix + report.damping * torch.eye(59)
        assert float(torch.linalg.eigvalsh(damped)[0]) > 0
        expected = -torch.linalg.solve(damped, gradient)
        step = snapshot(model) - start
        torch.testing.assert_close(step, expected, rtol=1e-7, atol=1e-10)
        assert float(step.norm()) == pytest.approx(radius, rel=0.1)
        assert report.reason == "at the radius"
        assert (report.step_length, report.fraction) == (1.0, 1.0)
        assert report.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-10)
        promised = float(gradient @ expected + expected @ matrix @ expected / 2)
        change = report.loss_after - report.loss
        assert report.reduction_ratio == pytest.approx(change / promised, rel=1e-5)

    @BOTH
    def test_rates_multiply_each_groups_part(self, kind):
        model = mlp()
        _, _, closure = classification(model)
        start = snapshot(model)
        kind(model, radius=0.01).step(closure)
        step = snapshot(model) - start
        torch.nn.utils.vector_to_parameters(start.clone(), model.parameters())
        groups = [
            {"params": trained(model)[:2], "lr": 0.1},
            {"params": trained(model)[2:], "lr": 0.02},
        ]
        kind(groups, radius=0.01).step(closure)
        rates = torch.cat([torch.full((16,), 0.1), torch.full((43,), 0.02)])
        torch.testing.assert_close(snapshot(model), start + rates * step, rtol=1e-8, atol=1e-10)

    def test_newton_takes_a_loss_alone(self):
        model = mlp()
        twin = copy.deepcopy(model)
        x, y, closure = classification(model)
        Newton(model).step(closure)
        Newton(twin).step(lambda: F.cross_entropy(twin(x), y))
        assert torch.equal(snapshot(model), snapshot(twin))

    def test_gauss_newton_sees_a_penalty_beside_the_prediction(self):
        """G is that of the prediction alone; the gradient is that of the whole loss."""
        model = nn.Linear(3, 1)
        x, y, plain = regression(model)

        def closure():
            loss, output = plain()
            return loss + 50 * model.weight.square().sum(), output

        inputs = torch.cat([x, torch.ones(30, 1)], 1)
        weights = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
        gradient = 2 * inputs.T @ (inputs @ weights - y[:, 0])
        gradient[:3] += 100 * weights[:3]
        step = -torch.linalg.solve(2 * inputs.T @ inputs, gradient)
        length = float(step.norm())
        GaussNewton(model, lr=0.1, radius=2 * length).step(closure)
        torch.testing.assert_close(snapshot(model), weights + 0.1 * step)


class TestConvergence:
    @BOTH
    def test_rosenbrock(self, kind):
        point, closure = of_point([-1.2, 1.0], rosenbrock)
        optimizer = kind([point])
        reports = [optimizer.step(closure) for _ in range(30)]
        torch.testing.assert_close(point.detach(), torch.ones(2), rtol=0, atol=1e-12)
        assert sum(r.evaluations for r in reports if r.gradient_norm > 1e-8) < 60

    def test_newton_agrees_with_scipys_trust_region(self):
        """Both go to the same minimum of a network with a penalty."""
        model = mlp()
        x, y, _ = classification(model)

        def penalised(parameters, logits):
            return F.cross_entropy(logits, y) + 0.01 * sum(p.square().sum() for p in parameters)

        start = snapshot(model)

        def value(vector):
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(torch.tensor(vector), model.parameters())
            loss = penalised(trained(model), model(x))
            return loss.item(), torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, trained(model))]
            ).numpy()

        optimizer = Newton(model)
        for _ in range(60):
            report = optimizer.step(lambda: penalised(trained(model), model(x)))
        assert report.gradient_norm < 1e-10
        ours = snapshot(model)
        theirs = scipy.optimize.minimize(value, ours.numpy() + 1e-3, jac=True, tol=1e-10)
        assert report.loss <= theirs.fun + 1e-12
        assert not torch.equal(ours, start)

    def test_gauss_newton_agrees_with_minpack(self):
        t = torch.linspace(0, 2, 12)
        observed = 3 * torch.exp(-1.3 * t) + 0.05 * torch.sin(9 * t)

        def residuals(p):
            return p[0] * torch.exp(-p[1] * t) - observed

        point, closure = of_point([1.0, 0.0], residuals)
        optimizer = GaussNewton([point])
        for _ in range(20):
            optimizer.step(closure)
        theirs = scipy.optimize.least_squares(
            lambda p: residuals(torch.tensor(p)).numpy(), [1.0, 0.0], method="lm", xtol=1e-14
        )
        np.testing.assert_allclose(point.detach(), theirs.x, rtol=1e-7)

    def test_badly_scaled_parameters(self):
        """Brown's: (1e6, 2e-6) from (1, 1)."""
        point, closure = of_point(
            [1.0, 1.0], lambda p: torch.stack([p[0] - 1e6, p[1] - 2e-6, p[0] * p[1] - 2])
        )
        optimizer = Newton([point])
        for _ in range(15):
            report = optimizer.step(closure)
        assert report.loss < 1e-12
        np.testing.assert_allclose(point.detach(), [1e6, 2e-6], rtol=1e-6)


class TestIndefinite:
    def test_leaves_a_maximum(self):
        """cos x has H < 0 near 0: Newton's undamped step would climb to the top."""
        point = nn.Parameter(torch.tensor([0.3]))
        optimizer = Newton([point])
        reports = [optimizer.step(lambda: point.cos().sum()) for _ in range(12)]
        assert reports[0].damping > 0.9
        assert float(point.cos()) == pytest.approx(-1.0)

    def test_leaves_a_saddle_that_the_gradient_does_not_see(self):
        """x² + y⁴ − y² at y = 0: the gradient is along x."""
        point = nn.Parameter(torch.tensor([1.0, 0.0]))
        optimizer = Newton([point], radius=0.5)
        for _ in range(20):
            optimizer.step(lambda: point[0] ** 2 + point[1] ** 4 - point[1] ** 2)
        np.testing.assert_allclose(point.detach().abs(), [0, math.sqrt(0.5)], atol=1e-7)

    def test_every_step_of_a_network_leads_down(self):
        model = mlp()
        x, y, closure = classification(model)
        hessian = functional_hessian(model, x, lambda z: F.cross_entropy(z, y))
        assert float(torch.linalg.eigvalsh(hessian)[0]) < -1e-3
        optimizer = Newton(model)
        for _ in range(15):
            report = optimizer.step(closure)
            assert report.accepted
            assert report.loss_after < report.loss
            assert float(closure()[0].detach()) == pytest.approx(report.loss_after, rel=1e-12)


class TestSingular:
    @BOTH
    def test_the_shortest_of_all_solutions(self, kind):
        """More unknowns than equations, so that minima are a plane."""
        a, b = torch.randn(3, 6), torch.randn(3)
        point, closure = of_point([0.0] * 6, lambda p: a @ p - b)
        report = kind([point]).step(closure)
        solution = np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0]
        np.testing.assert_allclose(point.detach(), solution, rtol=1e-9)
        assert report.damping == 0.0
        assert report.loss_after < 1e-20

    @BOTH
    def test_a_parameter_without_effect_stays(self, kind):
        model, idle = nn.Linear(3, 1), nn.Parameter(torch.ones(2))
        _, _, closure = regression(model)
        assert kind([*model.parameters(), idle]).step(closure).accepted
        assert torch.equal(idle, torch.ones(2))

    @BOTH
    def test_an_unused_layer_stays_bit_for_bit(self, kind):
        """In a network, whose matrix is indefinite or singular for other reasons, too."""
        model, unused = mlp(), nn.Linear(4, 4)
        with torch.no_grad():
            unused.bias[0] = -0.0
        _, _, closure = classification(model)
        start = snapshot(unused)
        optimizer = kind([*unused.parameters(), *model.parameters()])
        assert all(optimizer.step(closure).accepted for _ in range(8))
        assert torch.equal(snapshot(unused), start)
        assert torch.equal(snapshot(unused).signbit(), start.signbit())

    def test_float32(self):
        a, b = torch.randn(3, 6).float(), torch.randn(3).float()
        point = nn.Parameter(torch.zeros(6, dtype=torch.float32))

        def closure():
            r = a @ point - b
            return r.square().sum(), r

        GaussNewton([point]).step(closure)
        solution = np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0]
        np.testing.assert_allclose(point.detach(), solution, rtol=1e-3, atol=1e-4)

    def test_a_linear_loss(self):
        """No curvature at all: as far as the radius goes, down the gradient."""
        point = nn.Parameter(torch.tensor([3.0, -4.0]))
        report = Newton([point], radius=0.5).step(lambda: 3 * point[0] - 4 * point[1])
        assert report.damping == pytest.approx(5 / 0.5, rel=0.1)
        step = point.detach() - torch.tensor([3.0, -4.0])
        torch.testing.assert_close(step / step.norm(), torch.tensor([-0.6, 0.8]))
