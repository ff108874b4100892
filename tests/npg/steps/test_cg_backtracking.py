import math

import pytest
import torch

from npg.linalg import cg
from npg.steps import CGBacktracking


def filled(last, **options):
    path = CGBacktracking(**options)
    x = torch.zeros(1)
    for i in range(1, last + 1):
        x.fill_(i)  # as conjugate gradient does it, in place
        path(i, x)
    return path, x


class TestKept:
    @pytest.mark.parametrize(
        ("spacing", "numbers"),
        [(1.3, [1, 2, 3, 4, 6, 8, 11, 15, 20, 26]), (2.0, [1, 2, 4, 8, 16])],
    )
    def test_a_grid_of_copies(self, spacing, numbers):
        """1, ⌈1.3⌉ = 2, ⌈2.6⌉ = 3, ⌈3.9⌉ = 4, ⌈5.2⌉ = 6, ⌈7.8⌉ = 8, ⌈10.4⌉ = 11, …"""
        path, _ = filled(30, spacing=spacing)
        assert [number for number, _ in path.kept] == numbers
        assert [float(x) for _, x in path.kept] == numbers

    def test_forgotten(self):
        path, _ = filled(30)
        path.clear()
        path(1, torch.ones(1))
        assert [number for number, _ in path.kept] == [1]


class TestChoice:
    def choose(self, losses, last=8):
        """``losses`` by iterate; returns the chosen one and those that were evaluated."""
        path, x = filled(last)
        seen = []

        def evaluate(iterate):
            seen.append(int(iterate))
            return losses[int(iterate)]

        chosen, loss = path.choose(x, evaluate)
        assert loss == losses[int(chosen)] or math.isnan(loss)
        return int(chosen), seen

    def test_stays_where_the_earlier_one_is_higher(self):
        assert self.choose({8: 1.0, 6: 2.0, 4: 0.0}) == (8, [8, 6])

    def test_walks_back_while_the_loss_falls(self):
        """Grid 1 2 3 4 6 8: 4 is lower than 6 and 8, 3 is not lower than 4."""
        losses = {8: 5.0, 6: 4.0, 4: 3.0, 3: 3.0, 2: 1.0}
        assert self.choose(losses) == (4, [8, 6, 4, 3])

    def test_the_first_may_be_the_best(self):
        assert self.choose(dict.fromkeys(range(9), 0.0) | {8: 3.0, 6: 2.0, 4: 1.0, 3: 0.5})[0] == 2
        falling = {i: float(i) for i in range(9)}
        assert self.choose(falling) == (1, [8, 6, 4, 3, 2, 1])

    def test_a_last_one_off_the_grid_is_seen_once(self):
        assert self.choose({7: 1.0, 6: 2.0}, last=7) == (7, [7, 6])
        assert self.choose({7: 2.0, 6: 1.0, 4: 4.0}, last=7) == (6, [7, 6, 4])

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_goes_on_past_what_is_not_finite(self, bad):
        assert self.choose({8: bad, 6: bad, 4: 1.0, 3: 2.0}) == (4, [8, 6, 4, 3])
        assert self.choose({8: 2.0, 6: bad}) == (8, [8, 6])

    def test_without_iterates_the_last_is_all_there_is(self):
        path = CGBacktracking()
        x = torch.ones(1)
        assert path.choose(x, float) == (x, 1.0)


def test_iterates_of_conjugate_gradient_are_those_of_shorter_runs():
    q, _ = torch.linalg.qr(torch.randn(20, 20))
    a, b = (q * torch.logspace(0, 2, 20)) @ q.T, torch.randn(20)
    path = CGBacktracking()
    cg(a, b, max_iterations=10, tolerance=0, callback=path)
    for number, iterate in path.kept:
        assert torch.equal(iterate, cg(a, b, max_iterations=number, tolerance=0).x)
