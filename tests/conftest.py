"""Which tests are further ones, which the default command leaves out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

# Of the many cases of a check here, the default tests run the first ones.
FOLDERS = [Path(__file__).parent / name for name in ("algorithms", "training")]
FIRST = 3


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    cases: Counter[str] = Counter()
    for item in items:
        check = item.nodeid.partition("[")[0]
        cases[check] += 1
        if cases[check] > FIRST and any(item.path.is_relative_to(folder) for folder in FOLDERS):
            item.add_marker(pytest.mark.further)
