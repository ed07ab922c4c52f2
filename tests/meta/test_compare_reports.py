"""The comparison of reports of 0.1 and 0.2 sees what it is there for."""

from tests.meta.compare_reports import differences, renamed


def row(outcome: str, signature: str = "") -> dict[str, str]:
    return {"outcome": outcome, "signature": signature}


def test_each_kind_of_difference_is_one_line() -> None:
    old = {
        "a": row("PASS"),
        "b": row("XFAIL", "S/raised/X"),
        "c": row("PASS"),
        "d": row("XFAIL", "S/raised/X"),
        "gen/1": row("PASS"),
    }
    new = {"a": row("FAIL", "S/array/values"), "b": row("XFAIL", "S/raised/X@f"), "d": row("XFAIL", "S/raised/X@g")}
    assert differences(old, new, {("S/raised/X", "S/raised/X@f")}) == [
        "c: gone",
        "a: PASS -> FAIL",
        "d: S/raised/X -> S/raised/X@g",
        "generated shards: 1 -> 0",
    ]
    assert differences(new, new, set()) == []


def test_the_committed_table_is_read() -> None:
    assert renamed()
    assert all(new != old for old, new in renamed())
