import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import BFGS, LBFGS, minimize
from npg.steps import StrongWolfe
from tests.npg.optim.helpers import snapshot
from tests.npg.optim.test_quasi_newton import numpy_iterates, optimizer_on, quadratic, rosenbrock
from tests.npg.oracles import flat, mlp

N = 6
STOCHASTIC = {"line_search": None, "powell_damping": 0.2, "least_curvature": 0.1}


def pairs_of(optimizer):
    return optimizer.state_dict()["lbfgs"]


def dense(pairs):
    """H from the pairs, in numpy: γI, γ = sᵀy/yᵀy of the last, and a BFGS update by each."""
    pairs = [(s.numpy(), y.numpy()) for s, y, _ in pairs]
    s, y = pairs[-1]
    h = s @ y / (y @ y) * np.eye(len(s))
    for s, y in pairs:
        left = np.eye(len(s)) - np.outer(s, y) / (s @ y)
        h = left @ h @ left.T + np.outer(s, s) / (s @ y)
    return h


class TestIterates:
    @pytest.mark.parametrize("history", [1, 3, 10])
    def test_directions_are_of_the_dense_recursion(self, history):
        x, optimizer, closure = optimizer_on(
            LBFGS, rosenbrock, torch.tensor([-1.2, 1.0] * 3), history_size=history
        )
        optimizer.step(closure)
        for k in range(2, 20):
            pairs = pairs_of(optimizer)
            assert len(pairs) == min(k - 1, history)
            start = x.detach().clone()
            gradient = torch.autograd.grad(closure(), x)[0].numpy()
            report = optimizer.step(closure)
            expected = -report.step_length * dense(pairs) @ gradient
            np.testing.assert_allclose(x.detach() - start, expected, rtol=1e-6, atol=1e-12)

    def test_pairs_are_the_last_steps_and_changes_of_the_gradient(self):
        x, optimizer, closure = optimizer_on(
            LBFGS, rosenbrock, torch.tensor([-1.2, 1.0]), history_size=2
        )
        steps, changes = [], []
        for _ in range(5):
            start, before = x.detach().clone(), torch.autograd.grad(closure(), x)[0]
            optimizer.step(closure)
            steps.append(x.detach() - start)
            changes.append(torch.autograd.grad(closure(), x)[0] - before)
        for (s, y, inner), step, change in zip(
            pairs_of(optimizer), steps[-2:], changes[-2:], strict=True
        ):
            assert torch.equal(s, step)
            torch.testing.assert_close(y, change, rtol=1e-12, atol=1e-12)
            assert float(inner) == pytest.approx(float(s @ y))

    def test_the_first_two_are_those_of_bfgs(self):
        """Whose H is γI before the first pair; from the third step on γ is another."""
        start = torch.tensor([-1.2, 1.0, 0.5, -0.5])
        x, optimizer, closure = optimizer_on(LBFGS, rosenbrock, start)
        for expected, _ in numpy_iterates("bfgs", rosenbrock, start.numpy(), 2, 0.9):
            optimizer.step(closure)
            np.testing.assert_allclose(x.detach(), expected, rtol=1e-9)

    def test_n_exact_searches_end_a_quadratic(self):
        """Conjugate directions, as with any of Broyden's family."""
        _, function = quadratic()
        exact = StrongWolfe(sufficient_decrease=1e-10, curvature=1e-9, max_evaluations=50)
        _, optimizer, closure = optimizer_on(LBFGS, function, torch.randn(N), line_search=exact)
        norms = [optimizer.step(closure).gradient_norm for _ in range(N + 1)]
        assert norms[-2] > 1e-6
        assert norms[-1] < 1e-7


def classifier():
    """A network and a data set that it can fit."""
    model, x = mlp(), torch.randn(60, 3)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0)
    return model, x, y


class TestAgainstTorch:
    """torch.optim.LBFGS, with its own strong Wolfe search."""

    @staticmethod
    def torchs(parameters, loss, iterations=500):
        """Theirs, and the evaluations that it has taken."""
        options = {"tolerance_grad": 1e-10, "tolerance_change": 0, "history_size": 10}
        optimizer = torch.optim.LBFGS(
            parameters, 1, iterations, 5000, line_search_fn="strong_wolfe", **options
        )
        calls = []

        def closure():
            optimizer.zero_grad()
            value = loss()
            value.backward()
            calls.append(value.item())
            return value

        optimizer.step(closure)
        return calls

    @pytest.mark.parametrize("seed", range(3))
    def test_logistic_regression(self, seed):
        """Convex and ill-conditioned: evaluations until both are within 10⁻⁸ of the minimum."""
        torch.manual_seed(seed)
        model = nn.Linear(8, 3)
        x, y = torch.randn(60, 8) * torch.logspace(-1, 1, 8), torch.randint(3, (60,))
        start, calls = snapshot(model), []

        def loss():
            penalty = 1e-2 * sum(p.square().sum() for p in model.parameters())
            value = F.cross_entropy(model(x), y) + penalty
            calls.append(value.item())
            return value

        theirs = self.torchs(model.parameters(), loss)
        target = min(theirs) + 1e-8
        nn.utils.vector_to_parameters(start, model.parameters())
        calls.clear()
        optimizer = LBFGS(model, iterations=200, deterministic=False)
        assert optimizer.step(loss).loss_after == pytest.approx(min(theirs), abs=1e-9)
        by_us = next(k for k, value in enumerate(calls) if value <= target)
        by_them = next(k for k, value in enumerate(theirs) if value <= target)
        assert by_us <= 1.2 * by_them

    def test_rosenbrock(self):
        start = torch.tensor([-1.2, 1.0] * 5)
        x = start.clone().requires_grad_()
        theirs = self.torchs([x], lambda: rosenbrock(x))
        assert min(theirs) < 1e-12
        found = minimize(rosenbrock, start, method="l-bfgs", tol=1e-8)
        assert found.success
        torch.testing.assert_close(found.x, torch.ones(10), rtol=0.0, atol=1e-7)
        assert found.nfev <= 1.2 * len(theirs)


class TestMinibatches:
    """Each step on a batch of its own."""

    @pytest.fixture
    def problem(self):
        model, x, y = classifier()
        generator = torch.Generator().manual_seed(0)

        def batch():
            chosen = torch.randint(60, (12,), generator=generator)
            return lambda: F.cross_entropy(model(x[chosen]), y[chosen])

        return model, batch, lambda: F.cross_entropy(model(x), y).item()

    @pytest.mark.parametrize("kind", [LBFGS, BFGS])
    def test_descends_and_stays_finite(self, problem, kind):
        model, batch, whole = problem
        options = dict(STOCHASTIC)
        if kind is BFGS:
            del options["least_curvature"]
        optimizer, before = kind(model, lr=0.1, **options), whole()
        losses = []
        for _ in range(150):
            report = optimizer.step(batch())
            assert report.accepted
            assert report.reason == "fixed step"
            assert report.evaluations == 2 + (optimizer.extra["steps"] == 1)
            losses.append(whole())
            assert torch.isfinite(snapshot(model)).all()
        assert np.mean(losses[-30:]) < 0.7 * before

    def test_y_is_the_difference_on_one_batch(self, problem):
        model, batch, _ = problem
        optimizer, kept = LBFGS(model, lr=0.05, line_search=None), 0
        for _ in range(6):
            closure, start = batch(), snapshot(model)
            before = flat(torch.autograd.grad(closure(), list(model.parameters())))
            optimizer.step(closure)
            after = flat(torch.autograd.grad(closure(), list(model.parameters())))
            step = snapshot(model) - start
            for s, y, _ in pairs_of(optimizer):
                if torch.equal(s, step):
                    torch.testing.assert_close(y, after - before, rtol=1e-10, atol=1e-14)
                    kept += 1
        assert kept >= 3

    def test_damped_pairs_bound_the_matrix(self, problem):
        """With sᵀy ≥ ε sᵀs for all pairs, and as many as are asked for."""
        model, batch, _ = problem
        optimizer = LBFGS(model, lr=0.1, history_size=4, **STOCHASTIC)
        for k in range(1, 30):
            optimizer.step(batch())
            pairs = pairs_of(optimizer)
            assert len(pairs) == min(k, 4)
            for s, y, inner in pairs:
                assert float(inner) == pytest.approx(float(s @ y))
                assert float(s @ y) >= 0.1 * float(s @ s) * (1 - 1e-9)
            assert np.linalg.eigvalsh(dense(pairs)).min() > 0


class TestCurvature:
    """f = −½‖x‖², s = ½ x, y = −½ x: sᵀy = −¼ xᵀx."""

    @staticmethod
    def step(**options):
        start = torch.tensor([0.3, 0.4])
        _, optimizer, closure = optimizer_on(
            LBFGS, lambda x: -0.5 * x.square().sum(), start, lr=0.5, line_search=None, **options
        )
        assert optimizer.step(closure).accepted
        return start, pairs_of(optimizer)

    def test_a_pair_without_it_is_left_out(self):
        assert self.step()[1] == []

    def test_or_its_step_is_damped(self):
        """γ = ‖s‖/‖g‖ = ½, H y = −¼ x, yᵀHy = ⅛ xᵀx, θ = 0.8/8 : (1/8 + 1/4) = 4/15:
        s̃ = (4/15 · ½ − 11/15 · ¼) x = −x/20."""
        start, ((s, y, _),) = self.step(powell_damping=0.2)
        torch.testing.assert_close(s, -start / 20)
        torch.testing.assert_close(y, -start / 2)

    def test_or_the_change_of_its_gradient(self):
        """ε = 0.1: θ = 0.9 · ¼ : (¼ + ¼) = 0.45, ỹ = (−0.45 + 0.55) ½ x = x/20."""
        start, ((s, y, _),) = self.step(least_curvature=0.1)
        torch.testing.assert_close(s, start / 2)
        torch.testing.assert_close(y, start / 20)


@pytest.mark.parametrize(
    "settings",
    [
        {"history_size": 0},
        {"powell_damping": 1.0},
        {"least_curvature": 1.0},
        {"least_curvature": -0.1},
        {"least_curvature": float("nan")},
    ],
)
def test_refused(settings):
    (argument,) = settings
    with pytest.raises(ConfigurationError, match=argument):
        LBFGS([nn.Parameter(torch.zeros(2))], **settings)
