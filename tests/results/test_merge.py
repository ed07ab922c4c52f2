"""Shards of a run make the report of the whole run; what is no complete set of one run's shards is named."""

import json
from pathlib import Path

import pytest

from conformance.cli.main import main
from conformance.results.merge import merged
from conformance.results.verdict import PASS, Stream, Verdict, read

RUN = {"subject": "impl", "revision": "r", "versions": {"numpy": "2"}, "seed": 0, "selected": "x"}


def shard(number: int, count: int, *cases: str, **changed: object) -> tuple[Path, Stream]:
    header = {**RUN, "shard": f"{number}/{count}", "device": f"d{number}", "workers": 2, **changed}
    truncated = bool(header.pop("truncated", False))
    return Path(f"s{number}"), Stream(header, tuple(Verdict(case, "PACK", "impl", PASS) for case in cases), truncated)


def test_the_shards_of_a_run_are_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "--subject", "impl", "--workers", "0", "--stages", "PACK", "--level", "gate"]
    assert main([*run, "--report", str(tmp_path / "whole")]) == 0
    parts = [str(tmp_path / str(number)) for number in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        assert main([*run, "--shard", f"{number}/3", "--report", part]) == 0
    capsys.readouterr()
    assert main(["report", *reversed(parts), "--merge", str(tmp_path / "all")]) == 0
    assert "tests:100 passed:100" in capsys.readouterr().out
    bits = [{v.case: v.digest for v in read(tmp_path / name).verdicts} for name in ("whole", "all")]
    assert bits[0] == bits[1]
    assert (tmp_path / "all" / "report.html").is_file()
    assert "shard" not in json.loads((tmp_path / "all" / "verdicts.jsonl").read_text().splitlines()[0])["header"]
    assert main(["report", *parts, "--merge", str(tmp_path / "all")]) == 2
    assert "another run's report is there" in capsys.readouterr().err


def test_devices_and_workers_are_those_of_all_shards() -> None:
    stream = merged([shard(2, 2, "b"), shard(1, 2, "a")])
    assert [v.case for v in stream.verdicts] == ["b", "a"]
    assert (stream.header["device"], stream.header["workers"]) == ("d1, d2", 4)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([shard(1, 2, "a")], r"shard 2 of 2 is missing \(1 in all\)"),
        ([shard(1, 3, "a"), shard(3, 3, "b")], "shard 2 of 3 is missing"),
        ([shard(1, 2, "a"), shard(1, 2, "b")], "s1: shard 1 of 2 is s1 too"),
        ([shard(1, 2, "a"), shard(2, 3, "b")], "s2: another run's shard: shards '3', but s1 has '2'"),
        ([shard(1, 2, "a"), shard(2, 2, "b", subject="mine")], "s2: another run's shard: subject 'mine'"),
        ([shard(1, 2, "a"), shard(2, 2, "b", revision="q")], "s2: another run's shard: revision 'q'"),
        ([shard(1, 2, "a"), shard(2, 2, "b", selected="y")], "s2: another run's shard: selected 'y'"),
        ([shard(1, 2, "a"), shard(2, 2, "b", versions={"numpy": "1"})], "s2: another run's shard: versions"),
        ([shard(1, 2, "a"), shard(2, 2, "a")], "a case is in two shards"),
        ([shard(1, 2, "a"), shard(2, 2, "b", truncated=True)], "s2: the run did not finish; run shard 2 of 2 again"),
        ([shard(1, 2, "a"), shard(2, 2, "b", shard="")], "s2: no shard"),
        ([shard(1, 2, "a"), shard(2, 2, "b", shard="7/2")], "s2: no shard"),
    ],
)
def test_what_is_no_complete_set_is_named(shards: list[tuple[Path, Stream]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merged(shards)
