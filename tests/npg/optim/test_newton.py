import copy
import io
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import GaussNewton, Newton
from npg.optim import newton as module
from npg.optim.minimize import minimize
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import functional_hessian, functional_jacobian, mlp, trained

BOTH = pytest.mark.parametrize("kind", [Newton, GaussNewton])


def classification(model, n=40):
    x, y = torch.randn(n, 3), torch.randint(3, (n,))
    return x, y, objective(model, x, y)


def regression(model, n=30):
    x = torch.randn(n, 3)
    y = torch.randn(n, model(x).shape[1])

    def closure():
        output = model(x)
        return (output - y).square().sum(), output

    return x, y, closure


def of_point(start, residuals):
    """A point, and the closure of the sum of its squared residuals."""
    point = nn.Parameter(torch.tensor(start))

    def closure():
        r = residuals(point)
        return r.square().sum(), r

    return point, closure


def rosenbrock(p):
    return torch.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]])


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


class TestRefusals:
    @BOTH
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "gradient"])
    def test_a_trial_that_is_not_finite_is_shortened(self, kind, bad):
        point, plain = of_point([-1.2, 1.0], rosenbrock)

        def closure():
            loss, r = plain()
            if (point.detach() - torch.tensor([-1.2, 1.0])).norm() > 0.05:
                loss = loss + (0 * r).sqrt().sum() if bad == "gradient" else loss * bad
            return loss, r

        report = kind([point], radius=1.0).step(closure)
        assert report.accepted
        assert report.loss_after < report.loss
        assert 0 < float((point.detach() - torch.tensor([-1.2, 1.0])).norm()) <= 0.05

    @BOTH
    def test_refused_steps_restore_bit_for_bit(self, kind, monkeypatch):
        """All trials share one matrix, and one factorisation of it."""
        model = mlp()
        _, _, plain = classification(model)
        start = snapshot(model)
        factorised = []

        def counted(*args):
            factorised.append(1)
            return original(*args)

        original = module.quadratic_in_ball
        monkeypatch.setattr(module, "quadratic_in_ball", counted)

        def closure():
            loss, output = plain()
            return (loss if torch.equal(snapshot(model), start) else loss + 10), output

        optimizer = kind(model, radius=1.0, max_trials=5)
        report = optimizer.step(closure)
        assert not report.accepted
        assert report.reason == "no trial lowered the loss"
        assert report.loss_after == report.loss
        assert torch.equal(snapshot(model), start)
        assert report.evaluations == 1 + 5 + 2  # and twice the same, before and after
        assert optimizer.extra["rejected"] == 1
        assert optimizer.extra["radius"] == 0.25
        assert len(factorised) == 1

    @BOTH
    def test_an_error_in_a_trial_restores(self, kind):
        model = mlp()
        _, _, plain = classification(model)
        start, calls = snapshot(model), []

        def closure():
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return plain()

        with pytest.raises(KeyboardInterrupt):
            kind(model).step(closure)
        assert torch.equal(snapshot(model), start)

    @BOTH
    def test_a_loss_that_is_not_finite(self, kind):
        model = mlp()
        _, _, plain = classification(model)
        start = snapshot(model)
        optimizer = kind(model)

        def closure():
            loss, output = plain()
            return loss * math.nan, output

        assert optimizer.step(closure).reason == "loss or gradient is not finite"
        assert torch.equal(snapshot(model), start)
        assert optimizer.extra["skipped"] == 1

    def test_curvature_that_is_not_finite(self):
        """|x|^1.5 at 0 has a gradient, and no second derivative."""
        point = nn.Parameter(torch.tensor([0.0, 1.0]))
        report = Newton([point]).step(lambda: (point.abs() ** 1.5).sum())
        assert report.reason == "curvature is not finite"
        assert torch.equal(point, torch.tensor([0.0, 1.0]))

    def test_zero_gradients(self):
        point = nn.Parameter(torch.zeros(2))
        assert Newton([point]).step(lambda: point.square().sum()).reason == "zero gradient"
        report = Newton([point]).step(lambda: point[0] ** 2 - point[1] ** 2)
        assert "zero gradient, at a saddle" in report.reason
        assert not report.accepted
        assert not point.any()
        optimum, solved = of_point([1.0, 1.0], rosenbrock)
        assert GaussNewton([optimum]).step(solved).reason == "zero gradient"


class TestClosures:
    @BOTH
    def test_one_that_disagrees_with_itself(self, kind):
        model = mlp()
        _, _, plain = classification(model)
        generator = torch.Generator().manual_seed(0)
        start = snapshot(model)

        def closure():
            loss, output = plain()
            return loss * (1 + 0.1 * torch.rand((), generator=generator)), output

        optimizer = kind(model)
        for _ in range(2):  # not even the second time
            with pytest.raises(ConfigurationError, match="deterministic=False"):
                optimizer.step(closure)
        assert torch.equal(snapshot(model), start)
        kind(model, deterministic=False).step(closure)

    def test_dropout_keeps_its_masks(self):
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        _, _, closure = classification(model)
        optimizer = Newton(model)
        assert all(optimizer.step(closure).accepted for _ in range(5))

    @BOTH
    def test_torchs_own_is_told_what_to_change(self, kind):
        model = mlp()
        _, _, plain = classification(model)

        def closure():
            loss, output = plain()
            loss.backward()
            return loss, output

        with pytest.raises(ConfigurationError, match=rf"{kind.__name__}.*no backward\(\)"):
            kind(model).step(closure)

    def test_gauss_newton_needs_a_tensor_prediction(self):
        model = mlp()
        x, y, _ = classification(model)
        with pytest.raises(ConfigurationError, match=r"\(loss, prediction\)"):
            GaussNewton(model).step(lambda: F.cross_entropy(model(x), y))

        def closure():
            p = Categorical(logits=model(x))
            return -p.log_prob(y).mean(), p

        with pytest.raises(ConfigurationError, match="tensor prediction"):
            GaussNewton(model).step(closure)

    @BOTH
    def test_a_loss_of_other_parameters(self, kind):
        model, other = mlp(), mlp()
        _, _, closure = classification(other)
        with pytest.raises(ConfigurationError, match="depend"):
            kind(model).step(closure)


class TestState:
    @BOTH
    def test_resuming_is_bit_for_bit(self, kind):
        model = mlp()
        _, _, closure = classification(model)
        optimizer = kind(model, radius=0.3)
        for _ in range(3):
            optimizer.step(closure)
        assert optimizer.extra["radius"] != 0.3
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        losses = [float(optimizer.step(closure)) for _ in range(4)]
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved[0])
        resumed = kind(model)
        resumed.load_state_dict(saved[1])
        assert [float(resumed.step(closure)) for _ in range(4)] == losses

    @BOTH
    def test_an_iteration_begins_where_the_last_one_ended(self, kind):
        """The same iterates as of single steps, which evaluate each point a second time."""
        ends, counts = [], []
        for together in (True, False):
            point, closure = of_point([-1.2, 1.0], rosenbrock)
            optimizer = kind([point], deterministic=False, iterations=8 if together else 1)
            reports = [optimizer.step(closure) for _ in range(1 if together else 8)]
            ends.append(point.detach())
            counts.append(sum(report.evaluations for report in reports))
        assert torch.equal(*ends)
        assert counts[0] == counts[1] - 7

    def test_minimize(self):
        """One evaluation per trial, and P columns per Hessian."""
        start = torch.tensor([-1.2, 1.0])
        result = minimize(lambda x: rosenbrock(x).square().sum(), start, method="newton", tol=1e-10)
        assert result.success
        torch.testing.assert_close(result.x, torch.ones(2))
        assert result.nhev == 2 * result.nit
        theirs = scipy.optimize.minimize(
            scipy.optimize.rosen,
            start.numpy(),
            jac=scipy.optimize.rosen_der,
            hess=scipy.optimize.rosen_hess,
            method="trust-exact",
            options={"gtol": 1e-10},
        )
        assert result.nfev <= 1.2 * theirs.nfev


@BOTH
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"radius": 0.0}, "radius must be positive"),
        ({"radius": math.inf}, "radius must be positive and finite"),
        ({"radius": math.nan}, "radius must be positive"),
        ({"max_trials": 0}, "max_trials must be at least 1"),
    ],
)
def test_settings_are_checked(kind, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        kind(mlp(), **settings)


@BOTH
def test_too_many_parameters(kind, monkeypatch):
    with pytest.raises(ConfigurationError, match=r"40200 parameters is too large.*NewtonCG"):
        kind(nn.Linear(200, 200))
    monkeypatch.setattr(module, "DENSE_LIMIT", 60)
    optimizer = kind(mlp())
    with pytest.raises(ConfigurationError, match="75 parameters"):
        optimizer.add_param_group({"params": nn.Linear(3, 4).parameters()})
    assert len(optimizer.param_groups) == 1
