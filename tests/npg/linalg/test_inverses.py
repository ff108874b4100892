"""The ladder from single precision to jitter, with rungs that are made to break."""

import pytest
import torch

from npg.linalg import inverses
from npg.linalg.inverses import JITTERS, positive_eigenbasis, positive_inverse


def _positive(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    factor = torch.randn(*shape, shape[-1] + 2, dtype=dtype)
    return factor @ factor.mT


def _hilbert(n: int) -> torch.Tensor:
    """Condition 1.5e10 for n = 8: no single-precision factorisation holds."""
    i = torch.arange(1, n + 1, dtype=torch.float64)
    return 1 / (i[:, None] + i - 1)


class TestInverse:
    def test_is_that_of_numpy(self):
        matrices = _positive(4, 5)
        found, reports = positive_inverse(matrices)
        expected = torch.linalg.inv(matrices)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        assert torch.equal(found, found.mT)
        assert [(r.rung, r.failed) for r in reports] == [(0, False)] * 4

    def test_of_one_that_single_precision_cannot_do_climbs_alone(self):
        good = _positive(10, dtype=torch.float32) + torch.eye(10, dtype=torch.float32)
        bad = torch.block_diag(_hilbert(8).float(), torch.eye(2, dtype=torch.float32)) * 1e3
        found, reports = positive_inverse(torch.stack([good, bad]))
        assert [r.rung for r in reports] == [0, 1]
        assert found.dtype == torch.float32
        expected = torch.linalg.inv(bad.double())
        torch.testing.assert_close(found[1].double(), expected, rtol=1e-4, atol=1e-4)

    def test_without_a_digit_is_not_taken(self):
        """Cholesky passes in float32, with an inverse that is wrong by half."""
        matrix = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1.2e-7]], dtype=torch.float32)
        assert torch.linalg.cholesky_ex(matrix).info == 0
        (inverse,), (report,) = positive_inverse(matrix.unsqueeze(0))
        assert report.rung == 1
        expected = torch.linalg.inv(matrix.double()).float()
        torch.testing.assert_close(inverse, expected, rtol=1e-3, atol=0)

    def test_of_a_singular_matrix_has_jitter(self):
        vector = torch.randn(4)
        matrix = torch.outer(vector, vector)
        (inverse,), (report,) = positive_inverse(matrix.unsqueeze(0))
        assert report.rung >= 2
        jitter = JITTERS[report.rung - 1] * matrix.diagonal().mean()
        expected = torch.linalg.inv(matrix + jitter * torch.eye(4))
        torch.testing.assert_close(inverse, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_of_numbers_that_are_not_finite_fails_at_once(self, value, monkeypatch):
        matrix = torch.eye(3)
        matrix[0, 2] = matrix[2, 0] = value
        tried = []
        monkeypatch.setattr(inverses, "_one_cholesky_inverse", tried.append)
        _, (good, bad) = positive_inverse(torch.stack([torch.eye(3), matrix]))
        assert (good.failed, bad.failed) == (False, True)
        assert not tried

    def test_of_zero_and_of_negative_ones_fails(self):
        _, reports = positive_inverse(torch.stack([torch.zeros(3, 3), -torch.eye(3)]))
        assert [r.failed for r in reports] == [True, True]

    @pytest.mark.parametrize("breaks", range(len(JITTERS) + 2))
    def test_takes_the_first_rung_that_holds(self, breaks, monkeypatch):
        """A factorisation that fails so many times, as a mocked one does."""
        real, calls = torch.linalg.cholesky_ex, []

        def broken(matrix, **options):
            factor, info = real(matrix, **options)
            calls.append(matrix.dtype)
            return factor, info + (len(calls) <= breaks)

        monkeypatch.setattr(torch.linalg, "cholesky_ex", broken)
        matrix = _positive(3, dtype=torch.float32) + torch.eye(3, dtype=torch.float32)
        (inverse,), (report,) = positive_inverse(matrix.unsqueeze(0))
        assert calls[0] == torch.float32
        assert set(calls[1:]) <= {torch.float64}
        assert report.failed == (breaks > len(JITTERS))
        if not report.failed:
            assert report.rung == breaks
            jitter = 0 if breaks < 2 else JITTERS[breaks - 1] * float(matrix.diagonal().mean())
            expected = torch.linalg.inv(matrix.double() + jitter * torch.eye(3))
            torch.testing.assert_close(inverse.double(), expected, rtol=1e-4, atol=1e-5)

    def test_runs_without_numbers(self):
        found, reports = positive_inverse(torch.empty(2, 3, 3, device="meta"))
        assert found.shape == (2, 3, 3)
        assert len(reports) == 2


class TestEigenbasis:
    @pytest.mark.parametrize("shape", [(5,), (3, 4)])
    def test_diagonalises(self, shape):
        matrix = _positive(*shape)
        (values, vectors), report = positive_eigenbasis(matrix)
        assert report.rung == 0
        back = vectors @ torch.diag_embed(values) @ vectors.mT
        torch.testing.assert_close(back, matrix, rtol=1e-10, atol=1e-10)

    def test_has_no_negative_eigenvalue(self):
        vector = torch.randn(6, dtype=torch.float32)
        (values, _), _ = positive_eigenbasis(torch.outer(vector, vector))
        assert values.min() >= 0

    def test_of_zero_is_any(self):
        (values, vectors), report = positive_eigenbasis(torch.zeros(3, 3))
        assert not values.any()
        assert report.rung == 0
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(3))

    @pytest.mark.parametrize("shape", [(3, 3), (2, 3, 3)])
    def test_of_numbers_that_are_not_finite_fails_before_lapack(self, shape, monkeypatch):
        tried = []
        monkeypatch.setattr(torch.linalg, "eigh", tried.append)
        matrix = torch.eye(3).expand(shape).clone()
        matrix[..., 0, 0] = float("nan")
        found, report = positive_eigenbasis(matrix)
        assert found is None
        assert report.failed
        assert not tried

    @pytest.mark.parametrize("error", [torch.linalg.LinAlgError, None])
    @pytest.mark.parametrize("breaks", range(len(JITTERS) + 2))
    def test_takes_the_first_rung_that_holds(self, breaks, error, monkeypatch):
        """LAPACK may raise, or return what is not a number."""
        real, calls = torch.linalg.eigh, []

        def broken(matrix):
            calls.append(matrix.dtype)
            if len(calls) > breaks:
                return real(matrix)
            if error is not None:
                raise error("did not converge")
            values, vectors = real(matrix)
            return values, vectors * float("nan")

        monkeypatch.setattr(torch.linalg, "eigh", broken)
        matrix = _positive(3, dtype=torch.float32)
        found, report = positive_eigenbasis(matrix)
        assert report.failed == (breaks > len(JITTERS))
        assert (found is None) == report.failed
        if found is not None:
            assert report.rung == breaks
            assert {t.dtype for t in found} == {torch.float32}
            values, vectors = found
            back = vectors * values @ vectors.T
            torch.testing.assert_close(back, matrix, rtol=1e-3, atol=1e-3)

    def test_symmetrises(self):
        matrix = _positive(4)
        skew = torch.randn(4, 4)
        (values, _), _ = positive_eigenbasis(matrix + skew - skew.T)
        torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix), rtol=1e-8, atol=1e-8)
