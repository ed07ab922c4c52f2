"""Stage MATCH on generated programs: --seed and the shard's number stand for which."""

from collections.abc import Callable

from conformance.runs.shards import Shard


def test_generated(shard: Shard, judge: Callable[[Shard], None]) -> None:
    """Every program of the shard is decided, rewritten and left alone as the contract has it."""
    judge(shard)
