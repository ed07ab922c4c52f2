"""A pytest plugin for the suite (``-p tests.support.reordered``): some cases and shards, in the order ORDER names.

ORDER: "as it is", "reversed", or a number, which is the seed of a shuffle.
"""

import os
import random

import pytest

#: How many cases of a stage there are, about.
FEW = 12


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Thin out every stage, and put what is left into another order."""
    kept = []
    for name in dict.fromkeys(item.path.name for item in items):
        of_module = [item for item in items if item.path.name == name]
        kept += of_module[:: max(6, len(of_module) // FEW)]
    order = os.environ["ORDER"]
    if order == "reversed":
        kept.reverse()
    elif order.isdigit():
        random.Random(int(order)).shuffle(kept)  # noqa: S311 - an order, not a secret
    items[:] = kept
