import math

import pytest
import torch
from torch import nn

from npg.errors import ConfigurationError
from npg.optim import SR1
from tests.npg.optim.test_quasi_newton import optimizer_on, quadratic, rosenbrock

KINDS = ("trust-region", "line-search")
N = 6


@pytest.fixture(params=KINDS)
def globalisation(request):
    return request.param


class TestTrustRegion:
    def test_finds_the_inverse_hessian_of_a_quadratic(self):
        """In n + 1 steps of any length: the first pair gives the scale, and then has rᵀy = 0."""
        hessian, function = quadratic()
        _, optimizer, closure = optimizer_on(SR1, function, torch.randn(N))
        for _ in range(N + 1):
            assert optimizer.step(closure).accepted
        inverse = torch.linalg.inv(hessian)
        torch.testing.assert_close(optimizer.inverse_hessian, inverse, rtol=1e-8, atol=1e-8)

    def test_also_of_an_indefinite_one(self):
        """The matrix that BFGS cannot have; the steps run down its negative curvature."""
        hessian = torch.diag(torch.tensor([-1.0, 2.0, 5.0]))
        x, optimizer, closure = optimizer_on(
            SR1, lambda x: 0.5 * x @ hessian @ x, torch.tensor([0.1, 1.0, -2.0])
        )
        for _ in range(7):
            assert optimizer.step(closure).accepted
        torch.testing.assert_close(
            optimizer.inverse_hessian, torch.linalg.inv(hessian), rtol=1e-7, atol=1e-7
        )
        far = float(x.detach()[0].abs())
        optimizer.step(closure)
        assert float(x.detach()[0].abs()) > far

    def test_the_first_steps_by_hand(self):
        """f = x₁² + 2x₂² from (1, 0), Δ = 1: down −g/‖g‖ to the minimum (0, 0), at once.

        From (2, 0): to (1, 0), where f falls by 3 of 4 promised: the radius stays. s = (−1, 0),
        y = (−2, 0): H = ½ I. Then −H g = (−1, 0) leads to the minimum."""
        weights = torch.tensor([1.0, 2.0])
        x, optimizer, closure = optimizer_on(
            SR1, lambda x: (weights * x.square()).sum(), torch.tensor([2.0, 0.0])
        )
        report = optimizer.step(closure)
        torch.testing.assert_close(x.detach(), torch.tensor([1.0, 0.0]))
        assert report.reduction_ratio == pytest.approx(0.75)
        assert report.step_length == pytest.approx(1.0)
        assert optimizer.extra["radius"] == 1.0
        torch.testing.assert_close(optimizer.inverse_hessian, 0.5 * torch.eye(2))
        report = optimizer.step(closure)
        assert report.reduction_ratio == pytest.approx(1.0)
        torch.testing.assert_close(x.detach(), torch.zeros(2), rtol=0.0, atol=1e-12)
        assert optimizer.extra["radius"] == 2.0

    def test_a_rejected_trial_shrinks_the_radius_and_teaches(self):
        """f = x² from ½ with Δ = 4: the trial at −3½ is higher; a quarter of 4 is the next Δ, but
        H = ½ from s = −4, y = −8 is right, and −H g = −½ is within it."""
        x, optimizer, closure = optimizer_on(
            SR1, lambda x: x.square().sum(), torch.tensor([0.5]), radius=4.0
        )
        report = optimizer.step(closure)
        assert report.evaluations == 4  # the start, its check, and two trials
        assert optimizer.extra["radius"] == pytest.approx(1.0)
        assert float(optimizer.inverse_hessian) == pytest.approx(0.5)
        assert float(x.detach()) == pytest.approx(0.0, abs=1e-12)

    def test_leaves_a_region_where_nothing_is_finite(self):
        """Below 0 the logarithm is nan: from 10⁻³ the trials shorten tenfold."""
        x, optimizer, closure = optimizer_on(
            SR1, lambda x: (x - x.log()).sum(), torch.tensor([1e-3, 3.0]), radius=10.0
        )
        for _ in range(40):
            report = optimizer.step(closure)
            assert math.isfinite(report.loss_after)
        torch.testing.assert_close(x.detach(), torch.ones(2), rtol=1e-6, atol=1e-6)

    def test_gives_up_where_no_trial_is_good(self):
        """Finite at the start only."""
        start = torch.tensor([1.0, 2.0])
        x, optimizer, closure = optimizer_on(
            SR1,
            lambda x: x.sum() if torch.equal(x.detach(), start) else x.sum() * math.nan,
            start,
        )
        report = optimizer.step(closure)
        assert not report.accepted
        assert report.reason == "no trial was good"
        assert torch.equal(x.detach(), start)
        assert optimizer.extra["rejected"] == 1

    def test_tiny_gradients(self):
        """Of squares that are 0 in float32."""
        x, optimizer, closure = optimizer_on(
            SR1, lambda x: (x - 1).square().sum() * 1e-22, torch.zeros(4, dtype=torch.float32)
        )
        for _ in range(4):
            optimizer.step(closure)
        assert torch.isfinite(x).all()
        assert torch.isfinite(optimizer.inverse_hessian).all()

    def test_rates_scale_the_step(self):
        """Of a quadratic that is known; half of Newton's step halves the distance."""
        hessian, function = quadratic()
        x, optimizer, closure = optimizer_on(SR1, function, torch.randn(N), radius=100.0)
        for _ in range(N + 1):
            optimizer.step(closure)
        start = torch.randn(N)
        with torch.no_grad():
            x.copy_(start)
        optimizer.param_groups[0]["lr"] = 0.5
        gradient = torch.autograd.grad(closure(), x)[0]
        report = optimizer.step(closure)
        expected = start - 0.5 * torch.linalg.solve(hessian, gradient)
        torch.testing.assert_close(x.detach(), expected, rtol=1e-6, atol=1e-6)
        assert report.reduction_ratio == pytest.approx(1.0)


class TestLineSearch:
    @pytest.mark.parametrize("lr", [1.0, 0.5])
    def test_keeps_the_matrix_positive_definite(self, lr):
        start = torch.tensor([-1.2, 1.0, 2.0, -3.0])
        _, optimizer, closure = optimizer_on(
            SR1, rosenbrock, start, globalisation="line-search", lr=lr
        )
        for _ in range(40):
            if optimizer.step(closure).gradient_norm < 1e-3:
                break
            assert (torch.linalg.eigvalsh(optimizer.inverse_hessian) > 0).all()

    def test_damps_where_the_whole_update_would_not(self):
        """H = I, s = −g, y = f s: r = (1 − f) s, rᵀBr/rᵀy = (1 − f)²/((1 − f) f) = 1/f − 1, and
        det (H + r rᵀ/rᵀy) = 1/f: taken as it is for f = 4 and ¼, but for f = 1000 a tenth is the
        least determinant."""
        optimizer = SR1([nn.Parameter(torch.zeros(2))], globalisation="line-search")
        gradient = torch.tensor([-1.0, 0.0])
        for factor, determinant in ((4.0, 0.25), (0.25, 4.0), (1000.0, 0.1)):
            optimizer._inverse = torch.eye(2)
            optimizer._known = None
            step = -gradient
            optimizer.learn(step, gradient, gradient + factor * step)
            found = float(torch.linalg.det(optimizer.inverse_hessian))
            assert found == pytest.approx(determinant)

    def test_of_several_rates(self):
        """s is no multiple of H g then."""
        _, function = quadratic(4)
        a, b = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))
        groups = [{"params": [a], "lr": 0.7}, {"params": [b], "lr": 1.3}]
        optimizer = SR1(groups, globalisation="line-search")
        for _ in range(40):
            report = optimizer.step(lambda: function(torch.cat([a, b])))
            if report.gradient_norm < 1e-6:
                break
            assert (torch.linalg.eigvalsh(optimizer.inverse_hessian) > 0).all()
        assert report.gradient_norm < 1e-6


class TestBoth:
    @pytest.mark.parametrize("start", [(-1.2, 1.0), (-1.2, 1.0, -1.2, 1.0, -1.2, 1.0), (2.0, -3.0)])
    def test_reach_the_minimum(self, globalisation, start):
        x, optimizer, closure = optimizer_on(
            SR1, rosenbrock, torch.tensor(start), globalisation=globalisation
        )
        for _ in range(200):
            if optimizer.step(closure).gradient_norm < 1e-8:
                break
        torch.testing.assert_close(x.detach(), torch.ones(len(start)), rtol=0.0, atol=1e-7)

    @pytest.mark.parametrize(
        "settings", [{"globalisation": "dogleg"}, {"radius": 0.0}, {"radius": math.inf}]
    )
    def test_refused(self, settings):
        (argument,) = settings
        with pytest.raises(ConfigurationError, match=argument):
            SR1([nn.Parameter(torch.zeros(2))], **settings)


@pytest.mark.parametrize("lr", [0.3, 0.5, 1.0])
def test_the_radius_grows_at_every_rate(lr):
    """From 1000 away with a radius of 1 at first."""
    x = nn.Parameter(torch.tensor([1000.0, 0.0]))
    optimizer = SR1([x], lr=lr, iterations=100)
    report = optimizer.step(lambda: 0.6 * x[0] ** 2 + 1.5 * x[1] ** 2)
    assert report.loss_after < 1e-6
