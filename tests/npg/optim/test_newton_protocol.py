"""What Newton and GaussNewton refuse, undo, keep and resume."""

import io
import math

import pytest
import scipy.optimize
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import GaussNewton, Newton, iterated
from npg.optim import newton as module
from npg.optim.minimize import minimize
from tests.npg.optim.helpers import snapshot
from tests.npg.optim.newton_problems import BOTH, classification, of_point, rosenbrock
from tests.npg.oracles import mlp
from tests.pairs import pairs


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


class TestWithoutAMinimum:
    """Losses that have none, or have it at a kink: the radius grows or shrinks for ever."""

    @pytest.mark.uncounted  # hundreds of the same iterations
    @pytest.mark.parametrize(
        *pairs(
            loss={
                "linear": lambda x: x.sum(),
                "max": lambda x: x.max(),
                "-exp": lambda x: -x.exp().sum(),
                "-square": lambda x: -x.square().sum(),
                "cube": lambda x: (x**3).sum(),
                "abs": lambda x: x.abs().sum(),
                "shifted-abs": lambda x: (x - 0.1).abs().sum(),
            },
            dtype=[torch.float64, torch.float32],
            start=[[0.0, 0.0, 0.0], [0.3, -1.0, 2.0]],
        )
    )
    def test_ends_with_finite_parameters_and_no_higher(self, loss, dtype, start):
        start = torch.tensor(start, dtype=dtype)
        result = minimize(loss, start, method="newton", maxiter=700)
        assert torch.isfinite(result.x).all()
        assert result.fun <= float(loss(start))
        assert result.fun == float(loss(result.x))

    @BOTH
    def test_a_step_below_the_resolution_is_no_step(self, kind):
        """A radius of 1e-20 around 1 rounds to none: one trial finds that, without the loss."""
        point, closure = of_point([1.0], lambda p: 1e10 * (p - 1) + 1.0)
        start = point.detach().clone()
        optimizer = kind([point], radius=1e-20)
        report = optimizer.step(closure)
        assert (report.accepted, report.reason) == (
            False,
            "the step is below the parameters' resolution",
        )
        assert report.evaluations == 3  # the loss, and twice the same
        assert torch.equal(point, start)
        assert optimizer.extra["radius"] == 2.5e-21


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
        ({"lr": -1.0}, "lr must be finite and not negative"),
        ({"lr": math.nan}, "lr must be finite and not negative"),
        ({"lr": math.inf}, "lr must be finite and not negative"),
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
@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf])
def test_a_groups_rate_is_checked(kind, rate):
    first, second = mlp(), nn.Linear(3, 3)
    group = {"params": list(second.parameters()), "lr": rate}
    with pytest.raises(ConfigurationError, match="lr must be finite and not negative"):
        kind([{"params": list(first.parameters())}, group])
    optimizer = kind(first)
    with pytest.raises(ConfigurationError, match="lr must be finite and not negative"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


@BOTH
def test_a_rate_of_zero_moves_nothing_and_forgets_nothing(kind):
    """As schedules begin or end."""
    model = mlp()
    _, _, closure = classification(model)
    start = snapshot(model)
    optimizer = kind(model, lr=0.0, radius=0.3)
    report = optimizer.step(closure)
    assert (report.accepted, report.reason) == (False, "the rate is zero")
    assert torch.equal(snapshot(model), start)
    assert optimizer.extra["radius"] == 0.3
    optimizer.param_groups[0]["lr"] = 1.0
    assert optimizer.step(closure).accepted


@BOTH
def test_too_many_parameters(kind, monkeypatch):
    with pytest.raises(ConfigurationError, match=r"40200 parameters is too large.*NewtonCG"):
        kind(nn.Linear(200, 200))
    monkeypatch.setattr(iterated, "DENSE_LIMIT", 60)
    optimizer = kind(mlp())
    with pytest.raises(ConfigurationError, match="75 parameters"):
        optimizer.add_param_group({"params": nn.Linear(3, 4).parameters()})
    assert len(optimizer.param_groups) == 1
