"""The fuzz session's parts: real files read, altered ones read or are refused, and a planted mistake is seen."""

from pathlib import Path
from typing import Any

import pytest

from conformance.results import verdict
from tests.fuzz.mutations import Drawn, altered, batch
from tests.fuzz.readers import READERS, accepted_before, kind

#: Without the one whose file takes a lowering.
NAMES = [name for name in READERS if name != "pte"]


@pytest.mark.parametrize("name", NAMES)
def test_unaltered_files_are_accepted(name: str, tmp_path: Path) -> None:
    for file in kind(name).files:
        for seal in (True, False):
            assert READERS[name].read(tmp_path, kind(name).write(file, seal)) is not None


@pytest.mark.parametrize("name", NAMES)
def test_altered_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    refused = 0
    for drawn in batch(7):
        try:
            result = READERS[name].read(tmp_path, altered(kind(name), drawn))
        except ValueError:
            result = None
        refused += result is None
        if result is not None and READERS[name].sealed and not drawn[1]:
            assert accepted_before(name, tmp_path, result, drawn)
    assert refused


def test_a_reader_that_trusts_its_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a stream's footer that nobody compares."""
    monkeypatch.setattr(verdict, "_footer", lambda *_: AnyFooter())
    drawn: Drawn = (2, False, [])
    lines = kind("stream").files[2]
    raw = kind("stream").write([*lines[:2], {**lines[2], "outcome": "PASS", "signature": ""}, lines[3]], False)  # noqa: FBT003
    assert not accepted_before("stream", tmp_path, READERS["stream"].read(tmp_path, raw), drawn)


class AnyFooter(dict[str, Any]):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0
