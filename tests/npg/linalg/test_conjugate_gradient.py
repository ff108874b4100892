import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from npg.errors import ConfigurationError
from npg.linalg import cg


class Counting:
    """A dense matrix that counts its products."""

    def __init__(self, dense):
        self.dense, self.products = dense, 0

    def __matmul__(self, vector):
        self.products += 1
        return self.dense @ vector


def spd(size, condition=10.0):
    q, _ = torch.linalg.qr(torch.randn(size, size))
    return (q * torch.logspace(0, np.log10(condition), size)) @ q.T


class TestSolution:
    @pytest.mark.parametrize("size", [1, 2, 10, 40])
    def test_is_the_dense_one(self, size):
        a, b = spd(size), torch.randn(size)
        result = cg(a, b, max_iterations=100, tolerance=1e-12)
        expected = torch.linalg.solve(a, b)
        torch.testing.assert_close(result.x, expected, rtol=1e-9, atol=1e-10)
        assert result.reason == "converged"
        assert result.residual_norm <= 1e-12

    @pytest.mark.parametrize("iterations", [1, 3, 7])
    def test_is_scipys_at_every_iteration(self, iterations):
        a, b = spd(30, 100), torch.randn(30)
        theirs, _ = scipy.sparse.linalg.cg(a.numpy(), b.numpy(), rtol=0, maxiter=iterations)
        ours = cg(a, b, max_iterations=iterations, tolerance=0)
        np.testing.assert_allclose(ours.x, theirs, rtol=1e-8, atol=1e-10)
        assert ours.iterations == iterations
        assert ours.reason == "iteration limit"

    def test_preconditioned_is_scipys_too(self):
        a, b, x0 = spd(30, 1e4), torch.randn(30), torch.randn(30)
        m = torch.diag(1 / a.diagonal())
        theirs, _ = scipy.sparse.linalg.cg(
            a.numpy(), b.numpy(), x0.numpy(), rtol=0, maxiter=5, M=m.numpy()
        )
        ours = cg(a, b, x0=x0, preconditioner=lambda v: m @ v, max_iterations=5, tolerance=0)
        np.testing.assert_allclose(ours.x, theirs, rtol=1e-8, atol=1e-10)

    def test_takes_as_many_iterations_as_there_are_eigenvalues(self):
        q, _ = torch.linalg.qr(torch.randn(20, 20))
        a = (q * torch.tensor([1.0, 4.0, 9.0, 9.0]).repeat(5)) @ q.T
        assert cg(a, torch.randn(20), tolerance=1e-10).iterations == 3

    def test_the_residual_is_the_true_one(self):
        a, b = spd(30, 1e3), torch.randn(30)
        for options in ({}, {"preconditioner": lambda v: v / a.diagonal()}, {"x0": b.clone()}):
            result = cg(a, b, max_iterations=6, **options)
            residual = b - a @ result.x
            torch.testing.assert_close(result.residual, residual, rtol=1e-9, atol=1e-10)
            relative = float(residual.norm() / b.norm())
            assert result.residual_norm == pytest.approx(relative, rel=1e-8)
            assert result.residual_norm > 1e-3

    def test_stops_at_the_tolerance(self):
        a, b = spd(40, 1e3), torch.randn(40)
        result = cg(a, b, max_iterations=100, tolerance=1e-2)
        shorter = cg(a, b, max_iterations=result.iterations - 1, tolerance=1e-2)
        assert result.reason == "converged"
        assert result.residual_norm <= 1e-2 < shorter.residual_norm
        assert shorter.reason == "iteration limit"

    def test_float32(self):
        a, b = spd(20).float(), torch.randn(20).float()
        result = cg(a, b, max_iterations=50, tolerance=1e-5)
        assert result.x.dtype == torch.float32
        assert float((b - a @ result.x).norm() / b.norm()) < 2e-5

    def test_the_callback_sees_every_iterate(self):
        a, b, seen = spd(20, 100), torch.randn(20), []
        result = cg(a, b, max_iterations=4, callback=lambda i, x: seen.append((i, x.clone())))
        assert [i for i, _ in seen] == [1, 2, 3, 4]
        for i, x in seen:
            assert torch.equal(x, cg(a, b, max_iterations=i).x)
        assert torch.equal(seen[-1][1], result.x)


class TestCost:
    def test_one_product_per_iteration(self):
        a = Counting(spd(20))
        result = cg(a, torch.randn(20), max_iterations=5)
        assert a.products == result.iterations == 5

    def test_a_warm_start_costs_one_more(self):
        a = Counting(spd(20))
        cg(a, torch.randn(20), x0=torch.randn(20), max_iterations=5)
        assert a.products == 6

    def test_a_perfect_preconditioner_takes_one_iteration(self):
        a, b = spd(20, 1e4), torch.randn(20)
        inverse = torch.linalg.inv(a)
        result = cg(a, b, preconditioner=lambda v: inverse @ v, tolerance=1e-8)
        assert (result.iterations, result.reason) == (1, "converged")
        torch.testing.assert_close(a @ result.x, b, rtol=1e-6, atol=1e-8)

    def test_a_good_preconditioner_takes_fewer(self):
        scales = torch.logspace(0, 3, 40)
        a = spd(40) * scales * scales.unsqueeze(1)
        b = torch.randn(40)
        plain = cg(a, b, max_iterations=1000, tolerance=1e-8)
        jacobi = cg(
            a, b, max_iterations=1000, tolerance=1e-8, preconditioner=lambda v: v / a.diagonal()
        )
        assert jacobi.reason == "converged"
        assert jacobi.iterations < plain.iterations / 2

    def test_the_solution_as_a_warm_start_takes_none(self):
        a, b = spd(20), torch.randn(20)
        x0 = torch.linalg.solve(a, b)
        kept = x0.clone()
        result = cg(a, b, x0=x0, tolerance=1e-10)
        assert (result.iterations, result.reason) == (0, "converged")
        cg(a, torch.randn(20), x0=x0)
        assert torch.equal(x0, kept), "the start is not overwritten"

    def test_the_right_hand_side_is_left_as_it_was(self):
        a, b = spd(20), torch.randn(20)
        kept = b.clone()
        cg(a, b)
        cg(a, b, preconditioner=lambda v: v)  # one that returns its argument
        assert torch.equal(b, kept)

    def test_an_identity_preconditioner_changes_nothing(self):
        a, b = spd(20, 1e3), torch.randn(20)
        plain = cg(a, b, max_iterations=6)
        for identity in (lambda v: v, torch.clone):
            same = cg(a, b, max_iterations=6, preconditioner=identity)
            torch.testing.assert_close(same.x, plain.x, rtol=1e-10, atol=1e-12)


class TestEdges:
    def test_zero_right_hand_side(self):
        a = Counting(spd(5))
        result = cg(a, torch.zeros(5), x0=torch.ones(5))
        assert not result.x.any()
        assert (result.iterations, result.residual_norm) == (0, 0.0)
        assert result.reason == "zero right-hand side"
        assert a.products == 0

    def test_negative_curvature_keeps_what_was_reached(self):
        """Along b = (1, 1) the curvature is 2 − 1 and the step 2; the next one is negative."""
        a = torch.diag(torch.tensor([2.0, -1.0]))
        result = cg(a, torch.ones(2))
        assert result.reason == "negative curvature"
        assert result.iterations == 1
        torch.testing.assert_close(result.x, torch.tensor([2.0, 2.0]))
        result = cg(-a, torch.ones(2))
        assert (result.iterations, result.reason) == (0, "negative curvature")
        assert not result.x.any()

    def test_a_singular_direction_stops(self):
        result = cg(torch.zeros(3, 3), torch.ones(3))
        assert (result.iterations, result.reason) == (0, "negative curvature")

    def test_an_indefinite_preconditioner_stops(self):
        result = cg(spd(5), torch.ones(5), preconditioner=lambda v: -v)
        assert (result.iterations, result.reason) == (0, "negative curvature")

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_non_finite_matrix_stops(self, bad):
        class Failing(Counting):
            def __matmul__(self, vector):
                product = super().__matmul__(vector)
                return product * bad if self.products == 3 else product

        a, b = spd(20), torch.randn(20)
        result = cg(Failing(a), b)
        assert (result.iterations, result.reason) == (2, "not finite")
        torch.testing.assert_close(result.x, cg(a, b, max_iterations=2).x, rtol=0, atol=0)

    def test_a_non_finite_right_hand_side_and_preconditioner_stop(self):
        result = cg(spd(5), torch.tensor([1.0, 1, float("nan"), 1, 1]))
        assert (result.iterations, result.reason) == (0, "not finite")
        assert not result.x.any()
        result = cg(spd(5), torch.ones(5), preconditioner=lambda v: v * float("nan"))
        assert (result.iterations, result.reason) == (0, "not finite")

    @pytest.mark.parametrize("options", [{"max_iterations": 0}, {"max_iterations": -1}])
    def test_max_iterations(self, options):
        with pytest.raises(ConfigurationError, match="max_iterations"):
            cg(spd(3), torch.ones(3), **options)

    @pytest.mark.parametrize("tolerance", [-1e-9, float("nan")])
    def test_tolerance(self, tolerance):
        with pytest.raises(ConfigurationError, match="tolerance"):
            cg(spd(3), torch.ones(3), tolerance=tolerance)


class TestMartensStop:
    @pytest.mark.parametrize(("size", "epsilon"), [(100, 5e-4), (400, 1e-7)])
    def test_is_his_rule(self, size, epsilon):
        """φ is recomputed from the iterates; the first i with progress below k ε |φ| is found."""
        a, b, x = spd(size, 1e4), torch.randn(size), None
        values = []
        limit = 2 * size
        for i in range(1, limit):
            x = cg(a, b, max_iterations=i, tolerance=0).x
            values.append(float(0.5 * x @ (a @ x) - b @ x))
            k = max(10, i // 10)
            if i > k and (values[i - 1] - values[i - 1 - k]) / values[i - 1] < k * epsilon:
                break
        result = cg(a, b, max_iterations=limit, tolerance=0, progress_tolerance=epsilon)
        assert result.reason == "relative progress"
        assert 20 < result.iterations == i < limit - 1
        assert size == 100 or i > 120, "the second is for windows above ten"

    def test_waits_for_a_negative_quadratic(self):
        """From far away φ is positive, and relative progress means nothing yet."""
        a, b = spd(100, 1e4), torch.randn(100)
        x0 = 1e3 * torch.randn(100)
        result = cg(a, b, x0=x0, max_iterations=2000, tolerance=0, progress_tolerance=100.0)
        assert result.reason == "relative progress"
        assert float(0.5 * result.x @ (a @ result.x) - b @ result.x) < 0
        assert result.iterations > 11

    def test_is_off_by_default(self):
        a, b = spd(200, 1e4), torch.randn(200)
        assert cg(a, b, max_iterations=149, tolerance=0).iterations == 149
