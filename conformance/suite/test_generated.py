"""Stage MATCH on generated programs: --seed and the shard's number stand for which."""

from collections.abc import Callable

from conformance.runs.shards import Shard


def test_generated(shard: Shard, verdict_on_shard: Callable[[Shard], None]) -> None:
    """Every program of the shard is decided, rewritten and left alone as the contract has it."""
    verdict_on_shard(shard)
