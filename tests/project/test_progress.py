"""What a command says on a terminal while it works: a line that ticks, and nothing of it where there is no terminal."""

import io
import logging
import re
import time

import pytest

from conformance.cli.options import busy


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_ticks_counts_and_stays_below_what_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with busy("lowering", 4, "kits") as bar:
        time.sleep(2.2)
        logging.getLogger("q4gsw-test").warning("a warning")
        bar.update()
        bar.refresh()
    drawn = terminal.getvalue().split("\r")
    assert [line for line in drawn if re.search(r" 0/4 \[00:0[1-9]<\?", line)], "it ticks while nothing is done"
    assert [line for line in drawn if re.search(r" 25%.* 1/4 \[00:0\d<00:\d\d, ", line)], "time left"
    assert [line for line in drawn if line.strip() == "a warning"], "on a line of its own"
    assert not drawn[-1].strip(), "nothing stays"


def test_nothing_is_drawn_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", file := io.StringIO())
    with busy("lowering", 4, "kits") as bar:
        bar.update()
    with busy("reading"):
        pass
    assert file.getvalue() == ""
