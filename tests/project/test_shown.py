"""Names that come from a file are only shown: no escape sequence, no turned writing, no second line of theirs."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from conformance.audit import report as auditing
from conformance.audit.report import Audit, Part, TableRow
from conformance.case.catalogue import load, select
from conformance.case.toml import case_to_table
from conformance.cli.main import main
from conformance.explain import check as checking
from conformance.explain import report as explaining
from conformance.explain.check import Check, Compared
from conformance.explain.report import Explanation, Row
from conformance.files import say
from conformance.harness.observation import Problem
from conformance.pte import operators
from conformance.results import replay
from tests.impl.test_lowering_models import IDS, int4
from tests.kits.written import by_hand
from tests.observe.test_check import saved
from tests.observe.test_model_files import model_with

EVIL = "\x1b[2J\x1b]0;owned\x07\u202e\nPASS all\r\x85\u2028"
MODULES = sorted([*Path("conformance").rglob("*.py"), *Path("impl").rglob("*.py")])


def only_shown(text: str, lines: int | None = None) -> None:
    """A terminal shows ``text`` as it is, and none of its lines is the file's own."""
    assert all(line.isprintable() for line in text.split("\n")), text
    assert "PASS all" in text, "the name is not in it: this shows nothing"
    assert not any(line.strip().startswith("PASS all") for line in text.split("\n")), text
    assert lines is None or text.rstrip("\n").count("\n") + 1 == lines, text


def filled(kind: type[Any], **own: Any) -> Any:
    """A dataclass with EVIL in every text."""
    fields = {f.name: EVIL for f in dataclasses.fields(kind) if f.type is str}
    return kind(**{**fields, **own})


def test_an_audit() -> None:
    part = filled(Part, operators={EVIL: 2}, constant_bytes=1)
    sizes = {"rows": 1, "columns": 4, "group_size": 4, "bytes": 2, "scale_bytes": 4, "stored": 1}
    table = filled(TableRow, readers=(EVIL, EVIL), **sizes)
    audit = filled(Audit, size=1, parts=(part,), tables=(table,), problems=(filled(Problem),), notes=(EVIL,))
    only_shown(auditing.render(audit, EVIL), 12)


def test_an_explanation_and_a_check() -> None:
    rows = (filled(Row, outcome="refused", parameters=None), filled(Row, outcome="fused", parameters=None))
    embeddings = explaining.render(Explanation(rows), EVIL)
    only_shown(embeddings, 11)
    only_shown(explaining.render(Explanation(()), EVIL), 1)
    value = filled(Compared, shape=(1,), equal=False, ulp=1, snr=1.0)
    check = Check(embeddings, "", 1, (EVIL,), (EVIL,), (value,))
    only_shown(checking.render(check, EVIL), 11 + 10)
    only_shown(checking.render(dataclasses.replace(check, refused=EVIL), EVIL), 13)


def test_a_real_pt2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line of source that a refused lookup is of is a text of the file's."""
    path = Path(saved(int4(torch.nn.Sequential(torch.nn.Embedding(8, 32))), (IDS,), tmp_path / "good.pt2"))

    def edit(model: Any) -> None:
        for node in model["graph_module"]["graph"]["nodes"]:
            node["metadata"]["stack_trace"] = 'File "m.py", line 1, in PASS all \x1b[2J\u202e\n    x'
            for argument in node["inputs"]:
                if argument["name"] == "quant_max":
                    argument["arg"]["as_int"] = 6

    for command in ("explain", "check"):
        main([command, str(model_with(path, tmp_path / "evil.pt2", edit))])
        printed = capsys.readouterr()
        only_shown(printed.out + printed.err)


def test_operators(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(operators, "load", lambda: operators.OperatorList(EVIL, EVIL, (EVIL,)))
    main(["operators"])
    only_shown(capsys.readouterr().out)


def test_replay_and_bisect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (case,) = select(load(), ids=["pack/worked-bytes/flat"])
    head = {"version": replay.FORMAT, "subject": "impl", "signature": EVIL, "versions": {EVIL: EVIL}}
    path = tmp_path / "x.toml"
    path.write_text(tomli_w.dumps({"replay": head, "case": case_to_table(case)}))
    main(["replay", str(path)])
    only_shown(capsys.readouterr().out, 3)
    path.write_text(tomli_w.dumps({"replay": head | {"subject": EVIL}, "case": case_to_table(case)}))
    for words in (["replay"], ["bisect", "stage"]):
        assert main([*words, str(path)]) == 2
        only_shown(capsys.readouterr().err, 1)


@pytest.mark.parametrize("words", [["judge"], ["play"]])
def test_kits(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> None:
    """A directory's name is its author's, and so is what is wrong in it."""
    folder = tmp_path / f"k{EVIL}"
    folder.mkdir()
    by_hand(folder)
    (tmp_path / "out").mkdir()
    main(["kit", *words, str(folder), str(tmp_path / "out")])
    printed = capsys.readouterr()
    only_shown(printed.out + printed.err)
    (folder / "case.json").write_text(json.dumps({EVIL: EVIL}))
    assert main(["kit", *words, str(folder), str(tmp_path / "out")]) == 2
    only_shown(capsys.readouterr().err, 1)


def test_the_commands_speak_in_one_way(capsys: pytest.CaptureFixture[str]) -> None:
    """Lint refuses print in conformance/ (T201); what a command says goes through this, and each text is one line."""
    say(EVIL, EVIL)
    only_shown(capsys.readouterr().out, 2)
    prints = {path.as_posix() for path in MODULES if "# noqa: T201" in path.read_text()}
    assert prints == {"conformance/__init__.py", "conformance/cli/completion.py"}
