"""Every test of this folder runs once for each family."""

from __future__ import annotations

import pytest

from tests.contract.families import FAMILIES, Family


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    row: Family = request.param
    return row
