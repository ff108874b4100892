"""Cases of tests with many parameters: each two values meet, without all combinations."""

from collections.abc import Iterable, Mapping
from itertools import combinations, product
from typing import Any

import pytest


def pairs(**parameters: Iterable[Any] | Mapping[str, Any]) -> tuple[str, list]:
    """Arguments of ``pytest.mark.parametrize``.

    Args:
        parameters: The values of each parameter; with names for the cases, if a mapping.

    Returns:
        The parameters' names; and cases, of which some has the one and the other value of any two
        parameters. They are chosen one after the other, each with as many new pairs as can be.
    """
    values = [
        tuple(given.items()) if isinstance(given, Mapping) else tuple((_name(v), v) for v in given)
        for given in parameters.values()
    ]
    candidates = {case: _met(case) for case in product(*(range(len(v)) for v in values))}
    missing = set().union(*candidates.values())
    cases = []
    while missing:
        case = max(candidates, key=lambda case: len(candidates[case] & missing))
        missing -= candidates.pop(case)
        chosen = [given[i] for given, i in zip(values, case, strict=True)]
        name = "-".join(str(name) for name, _ in chosen)
        cases.append(pytest.param(*(value for _, value in chosen), id=name))
    return ",".join(parameters), cases


def _met(case: tuple[int, ...]) -> set:
    return set(combinations(enumerate(case), 2))


def _name(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value)
