"""The entrywise preconditioners, as such: what they remember, and what they multiply by."""

import pytest
import torch

from npg.preconditioners.base import TensorPreconditioner
from npg.preconditioners.diagonal import ClippedCurvature, MeanSquares
from npg.preconditioners.full_matrix import DenseRoot, WindowRoot
from tests.npg.oracles import TIGHT

MAKERS = {
    "adam": lambda states: MeanSquares(
        states, "square", keep=0.9, weight=0.1, epsilon=1e-3, correction=0.5, power=0.7
    ),
    "adagrad": lambda states: MeanSquares(states, "square", keep=1.0, weight=1.0, epsilon=0.1),
    "sophia": lambda states: ClippedCurvature(states, decay=0.9, gamma=0.5, epsilon=1e-3),
    "dense": lambda states: DenseRoot(states[0], 1e-3),
    "window": lambda states: WindowRoot(states[0], 1e-3, 3),
}


@pytest.mark.parametrize("name", MAKERS)
class TestEvery:
    def test_state_carries_all_of_it(self, name):
        """One that is restored from another's state multiplies by the same."""
        states = [{"step": 7}]
        one = MAKERS[name](states)
        for _ in range(4):
            gradient = torch.randn(5)
            one.update([gradient])
        one.refresh()
        other = MAKERS[name]([{}])
        other.load_state_dict(one.state_dict())
        other.refresh()
        assert torch.equal(one.apply([gradient])[0], other.apply([gradient])[0])
        assert "step" not in one.state_dict()[0], "the optimizer's own"
        assert isinstance(one, TensorPreconditioner)

    def test_leaves_its_arguments_alone(self, name):
        one, gradient = MAKERS[name]([{}]), torch.randn(5)
        kept = gradient.clone()
        one.update([gradient])
        product = one.apply([gradient])[0]
        assert torch.equal(gradient, kept)
        assert product.data_ptr() != gradient.data_ptr()


def test_mean_squares_are_the_formula():
    states = [{}, {}]
    one = MAKERS["adam"](states)
    first, second = [torch.randn(3), torch.randn(2, 2)], [torch.randn(3), torch.randn(2, 2)]
    one.update(first)
    one.update(second)
    for a, b, g in zip(first, second, one.apply(first), strict=True):
        s = 0.9 * 0.1 * a**2 + 0.1 * b**2
        torch.testing.assert_close(g, a / ((s / 0.5) ** 0.35 + 1e-3), **TIGHT)


def test_clipped_curvature_is_the_formula():
    one = MAKERS["sophia"]([{}])
    curvature = torch.tensor([10.0, -5.0, 1e-9, 2.0])
    one.update([curvature])
    gradient = torch.tensor([0.2, 0.2, -0.2, 5.0])
    # γ h = 0.05 · ĥ: the first is 0.2 / 0.5, others are bounded by ε, or clipped
    torch.testing.assert_close(one.apply([gradient])[0], torch.tensor([0.4, 1.0, -1.0, 1.0]))
