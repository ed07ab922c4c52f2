"""A pytest plugin for ``q4gsw run -- -p tests.support.reordered``: some cases and shards, in the order ORDER names.

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
    stages = [next(iter(item.callspec.params.values())).stage + item.path.name for item in items]
    for stage in dict.fromkeys(stages):
        of_stage = [item for item, its in zip(items, stages, strict=True) if its == stage]
        kept += of_stage[:: max(6, len(of_stage) // FEW)]
    order = os.environ["ORDER"]
    if order == "reversed":
        kept.reverse()
    elif order.isdigit():
        random.Random(int(order)).shuffle(kept)  # noqa: S311 - an order, not a secret
    items[:] = kept
