import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from npg.sampling import SHAPINGS, shaped


@pytest.mark.parametrize("number", [2, 3, 8])
def test_ranks_are_scipys(number):
    objectives = torch.randn(number)
    expected = (rankdata(objectives.numpy()) - 1) / (number - 1) - 0.5
    np.testing.assert_allclose(shaped(objectives, "ranks").numpy(), expected, atol=1e-12)


def test_equal_objectives_share_their_ranks():
    objectives = torch.tensor([1.0, 0.0, 1.0, 2.0])
    expected = (rankdata(objectives.numpy()) - 1) / 3 - 0.5
    np.testing.assert_allclose(shaped(objectives, "ranks").numpy(), expected, atol=1e-12)


def test_utilities_by_hand():
    # Wierstra et al. 2014, section 3.1, of four candidates: max(0, ln 3 − ln k) over their sum,
    # less 1/4; ln 3 = 1.0986, ln 3 − ln 2 = 0.4055, 0, 0, whose sum is 1.5041.
    utilities = np.array([1.098612, 0.405465, 0, 0]) / 1.504077 - 0.25
    found = shaped(torch.tensor([3.0, 7.0, -1.0, 4.0]), "utilities").numpy()
    np.testing.assert_allclose(-found / 4, utilities[[1, 3, 0, 2]], atol=1e-6)


def test_none_is_the_objective_less_its_mean():
    assert shaped(torch.tensor([1.0, 2.0, 6.0]), "none").tolist() == [-2, -1, 3]


@pytest.mark.parametrize("shaping", SHAPINGS)
class TestEach:
    def test_sums_to_zero_and_grows_with_the_objective(self, shaping):
        objectives = torch.randn(9)
        values = shaped(objectives, shaping)
        assert float(values.sum()) == pytest.approx(0, abs=1e-6)
        assert bool((values[objectives.argsort()].diff() >= 0).all())

    def test_what_is_not_finite_gets_nothing(self, shaping):
        values = shaped(torch.tensor([math.nan, 1.0, math.inf, 2.0, -math.inf]), shaping)
        assert values[[0, 2, 4]].tolist() == [0, 0, 0]
        assert values[1] < 0 < values[3]
        assert torch.equal(values[[1, 3]], shaped(torch.tensor([1.0, 2.0]), shaping))

    def test_nothing_at_all(self, shaping):
        assert shaped(torch.full((3,), math.nan), shaping).tolist() == [0, 0, 0]
        assert shaped(torch.tensor([5.0, math.nan]), shaping).tolist() == [0, 0]

    def test_huge_objectives_stay_finite(self, shaping):
        values = shaped(torch.tensor([1.7e308, -1.7e307, 1.7e308], dtype=torch.float64), shaping)
        assert bool(torch.isfinite(values).all())

    def test_equal_objectives_say_nothing(self, shaping):
        torch.testing.assert_close(
            shaped(torch.full((4,), 3.0), shaping), torch.zeros(4, dtype=torch.float64)
        )
