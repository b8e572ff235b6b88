"""Which values of a parameter every run takes, and which only `pytest -m long`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import pytest


def first(values: Iterable[Any], count: int = 1, names: int = 1) -> list[Any]:
    """Values for `pytest.mark.parametrize`: those after the first `count` are left to `pytest -m long`.

    For values that say the same again (more random cases; another family where the code knows no families), so that
    a run of all tests stays short.

    Args:
        values: of the parameter; tuples if there are several names.
        count: number of values for every run.
        names: number of parameters.
    """
    marked = [pytest.param(*(value if names > 1 else [value]), marks=pytest.mark.long) for value in values]
    return [*list(values)[:count], *marked[count:]]


def where(is_for_every_run: Callable[..., bool], *values: Iterable[Any]) -> list[Any]:
    """Combinations of the values of several parameters: those that a function denies are left to `pytest -m long`.

    For combinations of things that do not depend on each other, each of which every run sees in some combination.
    """
    return [
        case if is_for_every_run(*case) else pytest.param(*case, marks=pytest.mark.long) for case in product(*values)
    ]
