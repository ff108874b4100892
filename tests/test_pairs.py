"""Every two values of two parameters meet, in as few cases as the two largest need."""

from itertools import combinations

import pytest

from tests.pairs import pairs


@pytest.mark.parametrize("sizes", [(2, 3), (5, 2, 8), (2, 9, 3), (2, 2, 2, 2), (1, 4, 3)])
def test_each_two_values_meet(sizes) -> None:
    names, cases = pairs(**{f"p{i}": range(size) for i, size in enumerate(sizes)})
    assert names.split(",") == [f"p{i}" for i in range(len(sizes))]
    for (i, first), (j, second) in combinations(enumerate(sizes), 2):
        assert len({(c.values[i], c.values[j]) for c in cases}) == first * second
    largest, next_to_it = sorted(sizes)[:-3:-1]
    assert len(cases) <= 1.5 * largest * next_to_it
    assert len({c.id for c in cases}) == len(cases)


def test_names_are_those_of_the_mapping() -> None:
    _, cases = pairs(kind={"one": 1.5, "other": 2.5}, error=[KeyError], flag=[True])
    assert [c.id for c in cases] == ["one-KeyError-True", "other-KeyError-True"]
    assert [c.values for c in cases] == [(1.5, KeyError, True), (2.5, KeyError, True)]
