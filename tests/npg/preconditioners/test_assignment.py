"""Sharing inversions out over ranks."""

import itertools

import pytest
import torch
from torch import nn

from npg.errors import ConfigurationError
from npg.optim import KFAC
from npg.preconditioners.assignment import inversion_cost, longest_first


def makespan(costs, owners, size):
    return max(sum(c for c, o in zip(costs, owners, strict=True) if o == r) for r in range(size))


def test_the_last_rank_is_as_late_as_graham_s_worst_case():
    # Graham 1969, for three ranks: 11 where 9 can be had, 4/3 - 1/9 times as much.
    costs = [5, 5, 4, 4, 3, 3, 3]
    assert makespan(costs, longest_first(costs, 3), 3) == 11
    best = min(makespan(costs, o, 3) for o in itertools.product(range(3), repeat=len(costs)))
    assert best == 9


def test_no_rank_is_later_than_the_bound():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        costs = torch.randint(1, 30, (7,), generator=generator).tolist()
        best = min(makespan(costs, o, 2) for o in itertools.product(range(2), repeat=len(costs)))
        assert makespan(costs, longest_first(costs, 2), 2) <= best * (4 / 3 - 1 / 6)


def test_what_costs_nothing_is_everybody_s():
    assert longest_first([0, 8, 0, 1, 7], 2) == [None, 0, None, 1, 1]
    assert inversion_cost([(4, 4), (2, 3, 3), (100,)]) == 4**3 + 2 * 3**3


@pytest.mark.parametrize(
    "options",
    [
        {"assignment": "memory-optimal", "eigenbasis": True},
        {"assignment": "memory-optimal", "inverse": "block-tridiagonal"},
        {"assignment": "hybrid"},
    ],
)
def test_what_cannot_be_kept_apart_is_refused(options):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="assignment"):
        KFAC(model, **options)
