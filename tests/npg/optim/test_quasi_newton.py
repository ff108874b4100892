"""BFGS and DFP against oracles; what they share with L-BFGS and SR1 is in test_iterated.py."""

import numpy as np
import pytest
import torch
from scipy.optimize._dcsrch import DCSRCH
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from npg.errors import ConfigurationError
from npg.optim import BFGS, DFP, SR1
from npg.optim.quasi_newton import first_scale
from npg.steps import StrongWolfe

N = 6
FORMULAS = {"bfgs": BFGS, "dfp": DFP}


@pytest.fixture(params=FORMULAS)
def name(request):
    return request.param


def rosenbrock(x):
    return 100 * (x[1::2] - x[::2] ** 2).square().sum() + (1 - x[::2]).square().sum()


def quadratic(n=N):
    root = torch.randn(n, n)
    hessian, centre = root @ root.T + torch.eye(n), torch.randn(n)
    return hessian, lambda x: 0.5 * (x - centre) @ hessian @ (x - centre)


def numpy_update(name, h, s, y):
    eye, sy = np.eye(len(s)), s @ y
    if name == "dfp":
        hy = h @ y
        return h + np.outer(s, s) / sy - np.outer(hy, hy) / (y @ hy)
    left = eye - np.outer(s, y) / sy
    return left @ h @ left.T + np.outer(s, s) / sy


def numpy_iterates(name, function, x, steps, curvature=None, lr=1.0):
    """The textbook's method, with MINPACK's search in SciPy's translation or without one."""

    def evaluate(x):
        point = torch.tensor(x, requires_grad=True)
        value = function(point)
        return value.item(), torch.autograd.grad(value, point)[0].numpy()

    h, iterates = None, []
    for _ in range(steps):
        value, gradient = evaluate(x)
        direction = -lr * (gradient if h is None else h @ gradient)
        first = min(1.0, lr / np.linalg.norm(direction)) if h is None else 1.0
        if curvature is not None:
            search = DCSRCH(
                lambda a, x=x, d=direction: evaluate(x + a * d)[0],
                lambda a, x=x, d=direction: evaluate(x + a * d)[1] @ d,
                *(1e-4, curvature, 1e-15, 0.0, 1e10),
            )
            first, *_ = search(first, phi0=value, derphi0=gradient @ direction, maxiter=100)
        s = first * direction
        y = evaluate(x + s)[1] - gradient
        h = s @ y / (y @ y) * np.eye(len(x)) if h is None else h
        h, x = numpy_update(name, h, s, y), x + s
        iterates.append((x, h))
    return iterates


def optimizer_on(kind, function, x0, **options):
    x = nn.Parameter(x0.clone())
    return x, kind([x], **options), lambda: function(x)


class TestIterates:
    @pytest.mark.parametrize("curvature", [0.9, 0.1])
    def test_are_the_textbooks_with_minpacks_search(self, name, curvature):
        start = torch.tensor([-1.2, 1.0, -1.2, 1.0])
        search = StrongWolfe(curvature=curvature)
        x, optimizer, closure = optimizer_on(FORMULAS[name], rosenbrock, start, line_search=search)
        for expected, inverse in numpy_iterates(name, rosenbrock, start.numpy(), 15, curvature):
            optimizer.step(closure)
            np.testing.assert_allclose(x.detach(), expected, rtol=1e-6)
            np.testing.assert_allclose(optimizer.inverse_hessian, inverse, rtol=1e-4, atol=1e-8)

    def test_are_the_textbooks_without_a_search(self, name):
        _, function = quadratic()
        start = torch.randn(N)
        x, optimizer, closure = optimizer_on(
            FORMULAS[name], function, start, lr=0.3, line_search=None
        )
        for expected, inverse in numpy_iterates(name, function, start.numpy(), 12, lr=0.3):
            assert optimizer.step(closure).accepted
            np.testing.assert_allclose(x.detach(), expected, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(optimizer.inverse_hessian, inverse, rtol=1e-7, atol=1e-10)

    def test_n_exact_steps_on_a_quadratic_find_the_inverse_hessian(self, name):
        hessian, function = quadratic()
        exact = StrongWolfe(sufficient_decrease=1e-10, curvature=1e-9, max_evaluations=50)
        _, optimizer, closure = optimizer_on(
            FORMULAS[name], function, torch.randn(N), line_search=exact
        )
        for _ in range(N):
            assert optimizer.step(closure).accepted
        inverse = torch.linalg.inv(hessian)
        torch.testing.assert_close(optimizer.inverse_hessian, inverse, rtol=1e-8, atol=1e-8)
        assert optimizer.step(closure).gradient_norm < 1e-7

    def test_dfp_searches_nearly_exactly_by_default(self):
        parameter = [nn.Parameter(torch.zeros(2))]
        assert BFGS(parameter).line_search == StrongWolfe()
        assert DFP(parameter).line_search.curvature == 0.1

    def test_the_report(self, name):
        x, optimizer, closure = optimizer_on(FORMULAS[name], rosenbrock, torch.tensor([-1.2, 1.0]))
        before, start = closure(), x.detach().clone()
        (gradient,) = torch.autograd.grad(before, x)
        report = optimizer.step(closure)
        assert report.loss == float(report) == before.item()
        assert report.loss_after == closure().item() < report.loss
        assert report.gradient_norm == pytest.approx(float(gradient.norm()))
        assert report.reason == "strong Wolfe conditions"
        moved = float((x.detach() - start).norm())
        assert report.step_length * report.gradient_norm == pytest.approx(moved)


class TestCurvature:
    """f = −½‖x‖², of which every pair has sᵀy < 0."""

    @staticmethod
    def concave(x):
        return -0.5 * x.square().sum()

    def test_pairs_without_it_are_left_out(self, name):
        start = torch.tensor([0.3, 0.4])
        x, optimizer, closure = optimizer_on(
            FORMULAS[name], self.concave, start, lr=0.5, line_search=None
        )
        optimizer.step(closure)  # from x to 1.5 x: s is half of −g, and H that multiple of I
        torch.testing.assert_close(x.detach(), 1.5 * start)
        torch.testing.assert_close(optimizer.inverse_hessian, 0.5 * torch.eye(2))
        optimizer.step(closure)
        torch.testing.assert_close(x.detach(), 1.5 * 1.25 * start)
        torch.testing.assert_close(optimizer.inverse_hessian, 0.5 * torch.eye(2))

    def test_or_damped(self, name):
        """H = ½ I, s = ½ x, y = −½ x: sᵀy = −¼ xᵀx, yᵀHy = ⅛ xᵀx; θ = 0.8 · ⅛/(⅛ + ¼) = 4/15;
        s̃ = (4/15 · ½ − 11/15 · ¼) x = −0.05 x, and so H x = 0.1 x afterwards: H y = s̃."""
        start = torch.tensor([0.3, 0.4])
        x, optimizer, closure = optimizer_on(
            FORMULAS[name], self.concave, start, lr=0.5, line_search=None, powell_damping=0.2
        )
        for _ in range(8):
            optimizer.step(closure)
            if optimizer.extra["steps"] == 1:
                torch.testing.assert_close(optimizer.inverse_hessian @ start, 0.1 * start)
            assert (torch.linalg.eigvalsh(optimizer.inverse_hessian) > 0).all()
        assert torch.isfinite(x).all()

    @pytest.mark.parametrize(
        ("s", "y", "expected"),
        [
            (2.0, 4.0, 0.5),  # sᵀy/yᵀy
            (2.0, -4.0, 0.2),  # ‖s‖/‖g‖, g = 10
            (2.0, 0.0, 0.2),
            (2.0, 1e-23, 0.2),  # whose square is 0 in float32
        ],
    )
    def test_the_scale_to_begin_with(self, s, y, expected):
        s, y, g = (torch.full((3,), value, dtype=torch.float32) for value in (s, y, 10.0))
        assert first_scale(s, y, g) == pytest.approx(expected)


class Operations(TorchDispatchMode):
    """Notes the names of the operations that touch a matrix of n rows and columns."""

    def __init__(self, n):
        super().__init__()
        self.n, self.matrix, self.all = n, [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.__name__.split(".")[0]
        self.all.append(name)
        tensors = [a for a in [*args, result] if isinstance(a, torch.Tensor)]
        if any(t.shape == (self.n, self.n) for t in tensors):
            self.matrix.append(name)
        return result


@pytest.mark.parametrize(
    ("kind", "options"), [(BFGS, {}), (DFP, {}), (SR1, {"globalisation": "line-search"})]
)
def test_a_step_costs_one_product_and_one_update(kind, options):
    """Of O(n²) each, and no factorisation."""
    n = 40
    _, optimizer, closure = optimizer_on(kind, rosenbrock, torch.full((n,), -1.2), **options)
    for _ in range(3):
        optimizer.step(closure)
    for _ in range(5):
        with Operations(n) as operations:
            assert optimizer.step(closure).accepted
        assert sorted(operations.matrix) == ["addmm_", "mv"]
        assert not [o for o in operations.all if "linalg" in o and o != "linalg_vector_norm"]


class TestSettings:
    def test_too_many_parameters(self):
        with pytest.raises(ConfigurationError, match=r"20001 parameters.*LBFGS"):
            BFGS([nn.Parameter(torch.zeros(20_001))])
        optimizer = BFGS([nn.Parameter(torch.zeros(20_000))])
        with pytest.raises(ConfigurationError, match=r"20001 parameters.*LBFGS"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
        assert len(optimizer.param_groups) == 1

    @pytest.mark.parametrize(
        "settings",
        [
            {"powell_damping": 1.0},
            {"powell_damping": -0.1},
            {"lr": -1.0},
            {"lr": float("nan")},
            {"lr": float("inf")},
            {"iterations": 0},
            {"line_search": "wolfe"},
            {"line_search": 0.5},
        ],
    )
    def test_refused(self, name, settings):
        (argument,) = settings
        with pytest.raises(ConfigurationError, match=argument):
            FORMULAS[name]([nn.Parameter(torch.zeros(2))], **settings)
