"""NewtonCG with each of its matrices, preconditioned and from warm starts, and on functions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import NewtonCG
from npg.optim.objective import Objective
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import (
    categorical_fisher,
    classifier,
    functional_hessian,
    functional_jacobian,
    mlp,
)

PLAIN = {"cg_progress_tolerance": None, "cg_backtracking": False, "warm_start": None}
EXACT = {"cg_max_steps": 500, "cg_tolerance": 1e-13, **PLAIN}
# What finds a minimum to many digits.
NEWTON = {"matrix": "hessian", "damping": 0.0, **PLAIN, "cg_tolerance": None}


class TestDirections:
    """−(C + λI)⁻¹g with C from torch.func, densely."""

    @pytest.fixture
    def problem(self):
        model, x, y = classifier()
        return model, x, y, objective(model, x, y)

    def dense(self, kind, model, x, y):
        if kind == "hessian":
            return functional_hessian(model, x, lambda z: F.cross_entropy(z, y))
        return categorical_fisher(functional_jacobian(model, x), model(x).detach())

    @pytest.mark.parametrize("preconditioner", [None, "kfac"])
    @pytest.mark.parametrize("kind", ["gauss-newton", "hessian", "fisher"])
    def test_is_the_dense_one(self, problem, kind, preconditioner):
        model, x, y, closure = problem
        damping = 1.0  # above the Hessian's most negative eigenvalue
        matrix = self.dense(kind, model, x, y) + damping * torch.eye(59)
        assert float(torch.linalg.eigvalsh(matrix)[0]) > 0
        start = snapshot(model)
        gradient = torch.cat(
            [g.flatten() for g in torch.autograd.grad(closure()[0], list(model.parameters()))]
        )
        optimizer = NewtonCG(
            model,
            matrix=kind,
            damping=damping,
            lr=0.1,
            likelihood="categorical",
            cg_preconditioner=preconditioner,
            **EXACT,
        )
        report = optimizer.step(closure)
        step = (snapshot(model) - start) / 0.1
        expected = -torch.linalg.solve(matrix, gradient)
        torch.testing.assert_close(step, expected, rtol=1e-8, atol=1e-10)
        assert report.reason == "converged"
        assert report.cg_residual < 1e-12
        # At rate η the quadratic promises η gᵀd + ½ η² dᵀCd.
        undamped = matrix - damping * torch.eye(59)
        promised = 0.1 * gradient @ expected + 0.005 * expected @ undamped @ expected
        ratio = (report.loss_after - report.loss) / float(promised)
        assert report.reduction_ratio == pytest.approx(ratio, rel=1e-8)

    def test_the_fisher_matrix_of_a_distribution(self, problem):
        model, _, _, closure = problem
        start, ends = snapshot(model), []

        def distributed():
            loss, logits = closure()
            return loss, Categorical(logits=logits)

        for evaluate, likelihood in ((closure, "categorical"), (distributed, None)):
            torch.nn.utils.vector_to_parameters(start.clone(), model.parameters())
            NewtonCG(model, matrix="fisher", likelihood=likelihood, **EXACT).step(evaluate)
            ends.append(snapshot(model))
        torch.testing.assert_close(ends[1], ends[0], rtol=1e-10, atol=1e-12)

    def test_the_hessian_needs_the_loss_alone(self, problem):
        model, _, _, closure = problem
        start, ends = snapshot(model), []
        for evaluate in (closure, lambda: closure()[0]):
            torch.nn.utils.vector_to_parameters(start.clone(), model.parameters())
            NewtonCG(model, matrix="hessian", **EXACT).step(evaluate)
            ends.append(snapshot(model))
        assert torch.equal(ends[0], ends[1])

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, "return loss, logits"),
            ({"matrix": "fisher"}, "return loss, logits"),
            (
                {"matrix": "hessian", "cg_preconditioner": "kfac", "likelihood": "categorical"},
                "return loss, logits",
            ),
        ],
    )
    def test_others_need_the_prediction(self, problem, options, words):
        model, _, _, closure = problem
        with pytest.raises(ConfigurationError, match=words):
            NewtonCG(model, **options).step(lambda: closure()[0])

    def test_a_tensor_without_likelihood_is_no_prediction(self, problem):
        model, _, _, closure = problem
        for options in ({"matrix": "fisher"}, {"cg_preconditioner": "kfac"}):
            with pytest.raises(ConfigurationError, match="likelihood=None"):
                NewtonCG(model, **options).step(closure)

    def test_factors_need_the_module(self, problem):
        with pytest.raises(ConfigurationError, match="pass the module"):
            NewtonCG(problem[0].parameters(), cg_preconditioner="kfac")


class TestSolver:
    def regression(self):
        model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
        x, y = torch.randn(80, 6) * torch.logspace(0, -2, 6), torch.randn(80, 4)

        def closure():
            output = model(x)
            return (output - y).square().sum(1).mean() / 2, output

        return model, closure

    def steps(self, count, **options):
        torch.manual_seed(3)
        model, closure = self.regression()
        optimizer = NewtonCG(model, **options)
        return [optimizer.step(closure) for _ in range(count)]

    def test_kronecker_factors_save_products(self):
        """Where curvature differs a lot between directions, as in an autoencoder of images."""
        x = torch.tensor(load_digits().images[:400]).flatten(1) / 16
        encoder = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4), nn.Tanh())
        model = nn.Sequential(*encoder, nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 64))

        def closure():
            logits = model(x)
            return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x), logits

        optimizer = NewtonCG(model, cg_preconditioner="kfac", likelihood="bernoulli")
        for _ in range(20):
            optimizer.step(closure)
        start, products = snapshot(model), []
        for which in (None, "kfac"):
            torch.nn.utils.vector_to_parameters(start.clone(), model.parameters())
            report = NewtonCG(
                model,
                damping=optimizer.schedule.damping,
                cg_preconditioner=which,
                likelihood="bernoulli",
                **{**EXACT, "cg_tolerance": 1e-2},
            ).step(closure)
            assert report.reason == "converged"
            products.append(report.cg_iterations)
        assert products[1] < products[0] / 2, products

    def test_a_warm_start_begins_at_the_last_solution(self):
        """With λ fixed and a tiny step the system hardly changes: one product finds it solved."""
        options = {"lr": 1e-9, "cg_tolerance": 0.1, "cg_progress_tolerance": None}
        cold = self.steps(3, **options, warm_start=None, damping=1e-2, damping_factor=1.0001)
        warm = self.steps(3, **options, warm_start=1.0, damping=1e-2, damping_factor=1.0001)
        assert [r.cg_iterations for r in warm][1:] == [1, 1]
        assert min(r.cg_iterations for r in cold) > 1

    def test_a_warm_start_is_shortened(self):
        """At a quarter of the solution three quarters of the right-hand side are left."""
        model, closure = self.regression()
        optimizer = NewtonCG(model, lr=1e-12, warm_start=0.25, damping=1.0, damping_factor=1 + 1e-9)
        optimizer.step(closure)
        optimizer.inverse = replace(optimizer.inverse, tolerance=0.76)
        report = optimizer.step(closure)
        assert report.cg_iterations == 1
        assert report.cg_residual == pytest.approx(0.75, abs=0.01)

    def test_factors_are_of_this_batch_alone(self):
        model = nn.Linear(3, 2)
        optimizer = NewtonCG(model, cg_preconditioner="kfac", likelihood="normal")
        for x in (torch.randn(9, 3), torch.randn(9, 3)):

            def closure(x=x):
                output = model(x)
                return output.square().sum(1).mean() / 2, output

            optimizer.step(closure)
            ones = torch.cat([x, torch.ones(9, 1)], 1)
            torch.testing.assert_close(optimizer.factors.blocks[0].moments[0], ones.T @ ones / 9)

    def test_martens_stop(self):
        """The window is 10 iterations at least, so that 11 are the fewest."""
        options = {"damping": 1e-6, "cg_tolerance": 0.0, "cg_backtracking": False}
        loose = self.steps(1, **options, cg_progress_tolerance=0.5)[0]
        tight = self.steps(1, **options, cg_progress_tolerance=5e-4)[0]
        assert loose.reason == tight.reason == "relative progress"
        assert loose.cg_iterations == 11
        assert 11 < tight.cg_iterations < 250
        assert loose.cg_residual > tight.cg_residual


def test_backtracking_takes_the_best_iterate():
    """Along the first axis the loss turns up beyond 1, of which its curvature at 0 knows nothing.

    Loss: −x + 2 max(x − 1, 0)² + ε x²/2 − y + 50 y². Conjugate gradient first corrects the steep y,
    then goes to x = 1/ε = 100; its first iterate is near (0.02, 0.02).
    """
    point = nn.Parameter(torch.zeros(2))
    seen = []

    def closure():
        x, y = point
        seen.append(point.detach().clone())
        loss = -x + 2 * (x - 1).clamp(min=0) ** 2 + 0.005 * x**2 - y + 50 * y**2
        return loss

    options = {"matrix": "hessian", "damping": 1e-8, "cg_progress_tolerance": None}
    report = NewtonCG([point], **options, deterministic=False, line_search_max_iter=1).step(closure)
    last, earlier = seen[1], seen[2]
    torch.testing.assert_close(last, torch.tensor([100.0, 0.01]), rtol=1e-5, atol=0.0)
    g, h = torch.ones(2), torch.tensor([0.01, 100.0])
    torch.testing.assert_close(earlier, g * 2 / h.sum(), rtol=1e-6, atol=0.0)
    assert report.accepted
    torch.testing.assert_close(point.detach(), earlier)
    assert report.fraction == 1.0
    assert report.evaluations == 3
    assert report.loss_after == pytest.approx(float(closure().detach()), rel=1e-12)
    # λ is judged by the solution itself, whose loss is far above what was promised.
    assert report.reduction_ratio < 0

    point.data.zero_()
    alone = NewtonCG([point], **options, cg_backtracking=False, line_search_max_iter=1)
    assert alone.step(closure).reason == "line search failed"


class TestIndefinite:
    def test_a_saddle_is_left(self):
        """x² − y² + y⁴/4 from near its saddle to one of its minima at (0, ±√2)."""
        point = nn.Parameter(torch.tensor([1.0, 1e-3]))
        optimizer = NewtonCG([point], **NEWTON)
        reports = [
            optimizer.step(lambda: point[0] ** 2 - point[1] ** 2 + point[1] ** 4 / 4)
            for _ in range(40)
        ]
        assert any(report.reason.startswith("negative curvature") for report in reports)
        torch.testing.assert_close(
            point.detach().abs(), torch.tensor([0.0, 2**0.5]), rtol=1e-7, atol=1e-7
        )

    def test_damping_alone_copes_as_well(self):
        model = mlp()
        x, y = torch.randn(30, 3), torch.randint(3, (30,))
        closure = objective(model, x, y)
        optimizer = NewtonCG(model, matrix="hessian")
        reports = [optimizer.step(closure) for _ in range(30)]
        assert all(report.loss_after <= report.loss for report in reports)
        assert reports[-1].loss < 0.5 * reports[0].loss

    def test_a_linear_loss_has_no_curvature(self):
        point = nn.Parameter(torch.zeros(2))
        report = NewtonCG([point], **NEWTON).step(lambda: 3 * point[0] - 4 * point[1])
        torch.testing.assert_close(point.detach(), torch.tensor([-3.0, 4.0]))
        assert "along the gradient" in report.reason


def rosenbrock(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def beale(x):
    powers = (x[1], x[1] ** 2, x[1] ** 3)
    return sum((c - x[0] * (1 - p)) ** 2 for c, p in zip((1.5, 2.25, 2.625), powers, strict=True))


def wood(x):
    first = 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    second = 90 * (x[3] - x[2] ** 2) ** 2 + (1 - x[2]) ** 2
    return first + second + 10 * (x[1] + x[3] - 2) ** 2 + 0.1 * (x[1] - x[3]) ** 2


def powell_singular(x):
    squares = (x[0] + 10 * x[1]) ** 2 + 5 * (x[2] - x[3]) ** 2
    return squares + (x[1] - 2 * x[2]) ** 4 + 10 * (x[0] - x[3]) ** 4


def helical_valley(x):
    turn = torch.atan(x[1] / x[0]) / (2 * math.pi) + 0.5 * float(x[0].detach() < 0)
    radius = (x[0] ** 2 + x[1] ** 2).sqrt()
    return 100 * ((x[2] - 10 * turn) ** 2 + (radius - 1) ** 2) + x[2] ** 2


# Moré, Garbow and Hillstrom, "Testing unconstrained optimization software", 1981; minima are 0.
FUNCTIONS = {
    rosenbrock: [-1.2, 1.0],
    beale: [1.0, 1.0],
    wood: [-3.0, -1.0, -3.0, -1.0],
    powell_singular: [3.0, -1.0, 0.0, 1.0],
    helical_valley: [-1.0, 0.0, 0.0],
}


class TestFunctions:
    def minimise(self, function, start):
        """As a caller does that goes on from the accepted trial's evaluation."""
        point = torch.tensor(start, requires_grad=True)
        optimizer = NewtonCG([point], deterministic=False, **NEWTON)
        target = Objective(optimizer, lambda: function(point))
        evaluated, reports = target.gradient(), []
        while len(reports) < 300:
            report, evaluated = optimizer.iterate(target, evaluated)
            reports.append(report)
            if report.gradient_norm < 1e-9:
                break
        return float(function(point.detach())), target.evaluations, reports

    @pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
    def test_reaches_the_minimum(self, function):
        value, evaluations, reports = self.minimise(function, FUNCTIONS[function])
        assert value < 1e-10
        assert reports[-1].gradient_norm < 1e-9
        trials = sum(1 + math.log2(1 / r.fraction) for r in reports if r.accepted)
        assert evaluations == 1 + trials, "an accepted trial is the next step's start"

    def test_graphs_go_without_a_choice_among_iterates(self):
        point = torch.tensor([-1.2, 1.0], requires_grad=True)
        optimizer = NewtonCG([point], matrix="hessian", deterministic=False)
        target = Objective(optimizer, lambda: rosenbrock(point))
        evaluated = target.gradient()
        for _ in range(60):
            report, evaluated = optimizer.iterate(target, evaluated)
            assert evaluated.value == report.loss_after
        assert report.loss_after < 1e-6

    def test_takes_as_few_evaluations_as_scipys(self):
        """Over the functions whose minimum SciPy finds: not Wood's and Powell's."""
        ours = theirs = compared = 0
        for function, start in FUNCTIONS.items():

            def gradient(x, function=function):
                x = torch.tensor(x, requires_grad=True)
                return torch.autograd.grad(function(x), x)[0].numpy()

            def hessian(x, function=function):
                return torch.autograd.functional.hessian(function, torch.tensor(x)).numpy()

            found = scipy.optimize.minimize(
                lambda x, function=function: float(function(torch.tensor(x))),
                np.array(start),
                jac=gradient,
                hess=hessian,
                method="Newton-CG",
                options={"xtol": 1e-10, "maxiter": 100},
            )
            if found.success:
                compared += 1
                theirs += found.nfev
                ours += self.minimise(function, start)[1]
        assert compared == 3
        assert ours <= 1.2 * theirs

    def test_converges_quadratically(self):
        """Digits double: of the last gradients each is about the square of the one before."""
        _, _, reports = self.minimise(rosenbrock, FUNCTIONS[rosenbrock])
        norms = [report.gradient_norm for report in reports]
        assert norms[-3] > 1e-6
        assert norms[-1] < 1e-9

    def test_the_forcing_sequence(self):
        """min(½, √‖g‖) is met by every step that converged, and by some no more than it asks."""
        _, _, reports = self.minimise(wood, FUNCTIONS[wood])
        solved = [r for r in reports if r.reason == "converged"]
        bounds = [min(0.5, r.gradient_norm**0.5) for r in solved]
        assert all(r.cg_residual <= bound for r, bound in zip(solved, bounds, strict=True))
        assert any(r.cg_residual > 0.1 for r in solved)
        assert min(bounds) < 1e-3
