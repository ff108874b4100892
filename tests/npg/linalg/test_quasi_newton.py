import numpy as np
import pytest
import torch

from npg.linalg import quasi_newton as qn

N = 6
EPSILON = torch.finfo(torch.float64).eps  # tests run in it: see conftest.py
INVERSE = {"bfgs": qn.bfgs_inverse, "dfp": qn.dfp_inverse, "sr1": qn.sr1_inverse}
DIRECT = {"bfgs": qn.bfgs, "dfp": qn.dfp, "sr1": qn.sr1}
PRODUCTS = {
    "bfgs": qn.bfgs_inverse_products,
    "dfp": qn.dfp_inverse_products,
    "sr1": qn.sr1_inverse_products,
}
every_formula = pytest.mark.parametrize("name", INVERSE)


def positive_definite(n=N, *batch):
    root = torch.randn(*batch, n, n)
    return root @ root.mT + torch.eye(n)


def pair(n=N, *batch):
    """A step and a change of the gradient with sᵀy > 0."""
    s = torch.randn(*batch, n)
    return s, (positive_definite(n, *batch) @ s.unsqueeze(-1)).squeeze(-1)


def written_out(name, form, matrix, s, y):
    """The formulas of Nocedal and Wright, (6.13) to (6.25), term by term."""
    eye, sy = np.eye(len(s)), s @ y
    if (name, form) == ("bfgs", "inverse"):
        left = eye - np.outer(s, y) / sy
        return left @ matrix @ left.T + np.outer(s, s) / sy
    if (name, form) == ("bfgs", "direct"):
        bs = matrix @ s
        return matrix - np.outer(bs, bs) / (s @ bs) + np.outer(y, y) / sy
    if (name, form) == ("dfp", "inverse"):
        hy = matrix @ y
        return matrix - np.outer(hy, hy) / (y @ hy) + np.outer(s, s) / sy
    if (name, form) == ("dfp", "direct"):
        left = eye - np.outer(y, s) / sy
        return left @ matrix @ left.T + np.outer(y, y) / sy
    r = s - matrix @ y if form == "inverse" else y - matrix @ s
    return matrix + np.outer(r, r) / (r @ (y if form == "inverse" else s))


@every_formula
class TestUpdates:
    @pytest.mark.parametrize("form", ["direct", "inverse"])
    def test_are_the_formulas(self, name, form):
        matrix, (s, y) = positive_definite(), pair()
        update = (DIRECT if form == "direct" else INVERSE)[name]
        expected = written_out(name, form, matrix.numpy(), s.numpy(), y.numpy())
        np.testing.assert_allclose(update(matrix, s, y), expected, rtol=1e-11, atol=1e-11)

    def test_the_direct_form_is_the_inverse_of_the_inverse_form(self, name):
        matrix, (s, y) = positive_definite(), pair()
        new = DIRECT[name](matrix, s, y) @ INVERSE[name](torch.linalg.inv(matrix), s, y)
        torch.testing.assert_close(new, torch.eye(N), rtol=1e-9, atol=1e-9)

    def test_satisfy_the_secant_equation(self, name):
        matrix, (s, y) = positive_definite(), pair()
        torch.testing.assert_close(INVERSE[name](matrix, s, y) @ y, s, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(DIRECT[name](matrix, s, y) @ s, y, rtol=1e-10, atol=1e-10)

    def test_a_batch_is_one_by_one(self, name):
        matrix, (s, y) = positive_definite(N, 2, 3), pair(N, 2, 3)
        for update in (INVERSE[name], DIRECT[name]):
            together = update(matrix, s, y)
            for i, j in np.ndindex(2, 3):
                alone = update(matrix[i, j], s[i, j], y[i, j])
                torch.testing.assert_close(together[i, j], alone, rtol=1e-11, atol=1e-11)

    def test_return_new_tensors(self, name):
        matrix, (s, y) = positive_definite(), pair()
        kept = [t.clone() for t in (matrix, s, y)]
        for update in (INVERSE[name], DIRECT[name]):
            assert update(matrix, s, y) is not matrix
        assert all(torch.equal(a, b) for a, b in zip(kept, (matrix, s, y), strict=True))

    @pytest.mark.parametrize("batch", [(), (4,)])
    @pytest.mark.parametrize(("n", "rounding"), [(2, 0.0), (7, 0.0), (64, EPSILON)])
    def test_stay_symmetric(self, name, n, rounding, batch):
        """Bit for bit; a large product's edges are rounded otherwise on some processors."""
        matrix = positive_definite(n, *batch)
        matrix = 0.5 * (matrix + matrix.mT)
        for _ in range(5):
            matrix = INVERSE[name](matrix, *pair(n, *batch))
            assert (matrix - matrix.mT).abs().max() <= 5 * rounding * matrix.abs().max()

    def test_n_exact_searches_on_a_quadratic_find_its_inverse(self, name):
        """Nocedal and Wright, theorems 6.2 and 6.4."""
        hessian, x = positive_definite(), torch.randn(N)
        inverse = torch.eye(N)
        for _ in range(N):
            gradient = hessian @ x
            direction = -inverse @ gradient
            s = -(gradient @ direction) / (direction @ hessian @ direction) * direction
            inverse = INVERSE[name](inverse, s, hessian @ s)
            x = x + s
        torch.testing.assert_close(inverse, torch.linalg.inv(hessian), rtol=1e-8, atol=1e-8)
        assert float((hessian @ x).norm()) < 1e-8

    @pytest.mark.parametrize(("s_size", "y_size"), [(1e-12, 1e12), (1e12, 1e-12), (1e-12, 1e-12)])
    def test_extreme_scales(self, name, s_size, y_size):
        """s and y in other units: H in the square of the ratio, with the same digits."""
        s, y = pair()
        inverse = positive_definite() * (s_size / y_size)
        scaled = INVERSE[name](inverse, s * s_size, y * y_size) * (y_size / s_size)
        plain = INVERSE[name](inverse * (y_size / s_size), s, y)
        torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-9)

    def test_an_h_far_from_the_curvature(self, name):
        """H = I where the Hessian is of order 10²⁴: finite, symmetric, and the pair is learned."""
        s, y = pair()
        s, y = s * 1e-12, y * 1e12
        new = INVERSE[name](torch.eye(N), s, y)
        assert torch.isfinite(new).all()
        assert torch.equal(new, new.mT)
        rest = torch.linalg.vector_norm(new @ y - s)
        assert float(rest) <= 1e-13 * float(torch.linalg.vector_norm(y))


@pytest.mark.parametrize("name", ["bfgs", "dfp"])
@pytest.mark.parametrize("batch", [(), (5,)])
def test_stay_positive_definite_with_positive_curvature(name, batch):
    """Theirs is the promise where sᵀy > 0, however small it is."""
    inverse, direct = positive_definite(N, *batch), positive_definite(N, *batch)
    for _ in range(20):
        s, y = torch.randn(*batch, N), torch.randn(*batch, N)
        y = torch.where((s * y).sum(-1, keepdim=True) > 0, y, -y) + 0.1 * s
        inverse, direct = INVERSE[name](inverse, s, y), DIRECT[name](direct, s, y)
        assert (torch.linalg.eigvalsh(inverse) > 0).all()
        assert (torch.linalg.eigvalsh(direct) > 0).all()


class TestOuterProducts:
    @every_formula
    @pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
    def test_add_changes_the_callers_matrix(self, name, batch):
        matrix, (s, y) = positive_definite(N, *batch), pair(N, *batch)
        gain = PRODUCTS[name](s, y, (matrix @ y.unsqueeze(-1)).squeeze(-1))
        before, place = matrix.clone(), matrix.data_ptr()
        assert gain.add_(matrix) is matrix
        assert matrix.data_ptr() == place
        assert not torch.equal(matrix, before)
        torch.testing.assert_close(matrix, INVERSE[name](before, s, y))

    @every_formula
    @pytest.mark.parametrize("batch", [(), (3,)])
    def test_times_a_vector_is_the_dense_product(self, name, batch):
        matrix, (s, y) = positive_definite(N, *batch), pair(N, *batch)
        gain = PRODUCTS[name](s, y, (matrix @ y.unsqueeze(-1)).squeeze(-1))
        vector = torch.randn(*batch, N)
        dense = gain.add_(torch.zeros(*batch, N, N))
        expected = (dense @ vector.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(gain @ vector, expected, rtol=1e-10, atol=1e-10)


class TestSkippingRankOne:
    def test_a_small_denominator_leaves_the_matrix(self):
        """r = s − y at right angles to y: s = y + r."""
        y, r = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
        assert torch.equal(qn.sr1_inverse(torch.eye(2), y + r, y), torch.eye(2))

    @pytest.mark.parametrize(("tilt", "skips"), [(0.9e-8, True), (1.1e-8, False)])
    def test_the_bound(self, tilt, skips):
        """|rᵀy| against 10⁻⁸ ‖r‖ ‖y‖, with ‖r‖ = ‖y‖ = 1 up to 10⁻¹⁶."""
        y, r = torch.tensor([1.0, 0.0]), torch.tensor([tilt, 1.0])
        new = qn.sr1_inverse(torch.zeros(2, 2), r, y)  # H = 0 keeps r free of rounding
        assert torch.equal(new, torch.zeros(2, 2)) == skips

    def test_a_pair_that_is_known_teaches_nothing(self):
        matrix, y = positive_definite(), torch.randn(N)
        torch.testing.assert_close(qn.sr1_inverse(matrix, matrix @ y, y), matrix)
        exact = torch.diag(torch.tensor([1.0, 2.0, 4.0]))  # r = 0 exactly
        y = torch.tensor([3.0, 5.0, 7.0])
        assert torch.equal(qn.sr1_inverse(exact, exact @ y, y), exact)

    def test_goes_pair_by_pair_in_a_batch(self):
        s = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        y = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        new = qn.sr1_inverse(torch.eye(2).repeat(2, 1, 1), s, y)
        assert torch.equal(new[0], torch.eye(2))
        torch.testing.assert_close(new[1], torch.diag(torch.tensor([3.0, 1.0])))

    def test_follows_negative_curvature(self):
        """Pairs of an indefinite matrix: n of them and H is its inverse."""
        hessian = positive_definite() - 8 * torch.eye(N)
        assert float(torch.linalg.eigvalsh(hessian)[0]) < 0 < float(torch.linalg.det(hessian).abs())
        inverse = torch.eye(N)
        for s in torch.randn(N, N):
            inverse = qn.sr1_inverse(inverse, s, hessian @ s)
        torch.testing.assert_close(inverse, torch.linalg.inv(hessian), rtol=1e-7, atol=1e-7)


class TestDamping:
    def test_powell_against_hand_computed_numbers(self):
        """s = (1, 0), y = (−1, 2), H y = (−2, 2): sᵀy = −1, yᵀHy = 2 + 4 = 6, μ yᵀHy = 1.2;
        θ = 0.8 · 6/(6 + 1) = 4.8/7; s̃ = θ (1, 0) + (1 − θ)(−2, 2)
          = ((4.8 − 4.4)/7, 4.4/7) = (0.4/7, 4.4/7), and s̃ᵀy = (−0.4 + 8.8)/7 = 1.2."""
        s, y = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 2.0])
        damped = qn.powell_damped(s, y, torch.tensor([-2.0, 2.0]), 0.2)
        torch.testing.assert_close(damped, torch.tensor([0.4, 4.4]) / 7)
        assert float(damped @ y) == pytest.approx(1.2)

    def test_powell_adds_what_is_missing(self):
        """With (1 − θ) H y subtracted, as a public code has it, s̃ᵀy would be −18/7 here."""
        s, y = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 2.0])
        product = torch.tensor([-2.0, 2.0])
        mixing = 4.8 / 7
        wrong = mixing * s - (1 - mixing) * product
        assert float(wrong @ y) == pytest.approx(-18 / 7)
        assert float(qn.powell_damped(s, y, product) @ y) > 0

    def test_curvature_against_hand_computed_numbers(self):
        """s = (2, 0), y = (−1, 3), ε = ¼: sᵀy = −2, sᵀs = 4, ε sᵀs = 1;
        θ = ¾ · 4/(4 + 2) = ½; ỹ = ½ (−1, 3) + ½ (2, 0) = (0.5, 1.5), and sᵀỹ = 1."""
        s, y = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 3.0])
        damped = qn.curvature_damped(s, y, 0.25)
        torch.testing.assert_close(damped, torch.tensor([0.5, 1.5]))
        assert float(damped @ s) == pytest.approx(1.0)

    def test_both_stages(self):
        """As above, then ε = 0.9: s̃ᵀs̃ = (0.16 + 19.36)/49 < 1.2/0.9, and nothing is to be done.
        With H = 100 I: yᵀHy = 500, θ = 400/501, s̃ = (400 − 10100, 20200)/501,
        s̃ᵀs̃ = (9700² + 20200²)/501² = 502130000/251001, more than s̃ᵀy/0.9 = 100/0.9."""
        s, y = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 2.0])
        first = qn.powell_damped(s, y, torch.tensor([-2.0, 2.0]))
        assert torch.equal(qn.curvature_damped(first, y, 0.9), y)
        first = qn.powell_damped(s, y, 100 * y)
        torch.testing.assert_close(first, torch.tensor([-9700.0, 20200.0]) / 501)
        second = qn.curvature_damped(first, y, 0.9)
        assert float(first @ second) == pytest.approx(0.9 * 502130000 / 251001)

    def test_leave_what_has_curvature_bit_for_bit(self):
        s, y = pair()
        assert torch.equal(qn.powell_damped(s, y, y * float(s @ y / (y @ y))), s)
        assert torch.equal(qn.curvature_damped(s, y, 0.5), y)

    @pytest.mark.parametrize("share", [0.05, 0.2, 0.9])
    def test_are_batched_and_keep_the_matrix_positive_definite(self, share):
        s, y, inverse = torch.randn(40, N), torch.randn(40, N), positive_definite(N, 40)
        product = (inverse @ y.unsqueeze(-1)).squeeze(-1)
        assert ((s * y).sum(-1) < 0).any()
        damped = qn.powell_damped(s, y, product, share)
        least = share * (y * product).sum(-1)
        assert ((damped * y).sum(-1) >= least * (1 - 1e-12)).all()
        changes = qn.curvature_damped(damped, y, share)
        least = share * (damped * damped).sum(-1)
        assert ((damped * changes).sum(-1) >= least * (1 - 1e-12)).all()
        for i in range(40):
            alone = qn.powell_damped(s[i], y[i], product[i], share)
            torch.testing.assert_close(alone, damped[i])
            torch.testing.assert_close(qn.curvature_damped(alone, y[i], share), changes[i])
        for new in (qn.bfgs_inverse(inverse, damped, y), qn.bfgs_inverse(inverse, damped, changes)):
            assert (torch.linalg.eigvalsh(new) > 0).all()


class TestTwoLoop:
    @pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
    @pytest.mark.parametrize("count", [0, 1, 4, 9])
    def test_is_the_dense_recursion(self, count, batch):
        pairs = [pair(N, *batch) for _ in range(count)]
        vector, scale = torch.randn(*batch, N), 0.1 + torch.rand(*batch, 1)
        inverse = torch.eye(N) * scale.unsqueeze(-1)
        for s, y in pairs:
            inverse = qn.bfgs_inverse(inverse, s, y)
        steps, changes = [s for s, _ in pairs], [y for _, y in pairs]
        expected = (inverse @ vector.unsqueeze(-1)).squeeze(-1)
        kept = vector.clone()
        found = qn.two_loop(vector, steps, changes, scale)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        assert torch.equal(vector, kept)
        assert found is not vector
        known = [(s * y).sum(-1, keepdim=True) for s, y in pairs]
        again = qn.two_loop(vector, steps, changes, scale, known)
        torch.testing.assert_close(again, found, rtol=1e-12, atol=1e-12)

    def test_refuses_an_odd_number_of_vectors(self):
        s, y = pair()
        with pytest.raises(ValueError, match="zip"):
            qn.two_loop(y, [s, s], [y])
