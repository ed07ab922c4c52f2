"""Bisection over commits on generated repositories: the answer is the planted transition, whatever lies on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from conformance.bisect.search import Search, state_of
from conformance.case.catalogue import load, select
from conformance.cli.main import main
from conformance.results import replay
from conformance.results.verdict import Verdict
from tests.support.commands import with_q4gsw
from tests.support.git_histories import HELPER, NO_IMPORT, SUBJECT, SWAPPED, History, linear, steps

ROOT = Path(__file__).parents[2]
CASE = "pack/linear_weight/every-pair"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("Q4GSW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # what a step sets stays in this test
    return tmp_path / "cache"


def bisect(repo: Path, good: str, bad: str, *more: str) -> int:
    return search(repo, good, bad, CASE, "--subject-file", "subject.py:Packs", *more)


def search(repo: Path, good: str, bad: str, *more: str) -> int:
    return main(["bisect", "commit", "--repo", str(repo), "--good", good, "--bad", bad, *more])


def first(capsys: pytest.CaptureFixture[str]) -> str:
    found = re.search(r"^first (?:bad|good): ([0-9a-f]{40})", capsys.readouterr().out, re.MULTILINE)
    assert found
    return found[1]


def tree(i: int, broken_from: int) -> Mapping[str, str]:
    return {"subject.py": SWAPPED if i >= broken_from else SUBJECT, "helper.py": HELPER}


def state_of_checkout(repo: Path) -> list[str]:
    words = (["status", "--porcelain"], ["for-each-ref"], ["rev-parse", "HEAD"], ["count-objects", "-v"])
    return [
        subprocess.run(["git", "-C", str(repo), *w], capture_output=True, text=True, check=True).stdout for w in words
    ]


def test_two_hundred_commits_in_eight_steps(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = linear(tmp_path / "repo", 200, lambda i: tree(i, 137))
    (tmp_path / "repo" / "notes.txt").write_text("not committed\n")
    before = state_of_checkout(tmp_path / "repo")
    assert bisect(tmp_path / "repo", names[1], "main") == 0
    said = capsys.readouterr().out
    assert f"first bad: {names[137]}" in said
    assert "before: " in said
    assert "PACK/layout/nibble_order" in said
    assert "uncommitted changes" in said
    assert state_of_checkout(tmp_path / "repo") == before
    (log,) = own_cache.glob("bisect/*/steps.jsonl")
    asked = [s for s in steps(log.parent) if not s.cached]
    assert len({s.commit for s in asked}) <= 2 + 8 + 1
    assert not list(log.parent.glob("work-*"))


def test_commits_that_cannot_be_tested_or_fail_otherwise_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files(i: int) -> Mapping[str, str]:
        if 95 <= i <= 105:
            return {"subject.py": SUBJECT, "helper.py": NO_IMPORT}
        if 60 <= i <= 64:
            return {"subject.py": SUBJECT, "helper.py": "OFFSET = 7\n"}  # another failure: wrong codes
        return tree(i, 80)

    names = linear(tmp_path / "repo", 200, files)
    assert bisect(tmp_path / "repo", names[1], names[200]) == 0
    said = capsys.readouterr().out
    assert "\\n" not in said, "a line is a line"
    assert f"first bad: {names[80]}" in said
    assert "No module named" in said or "cannot import name 'OFFSET'" in said


def test_where_skips_prevent_an_answer_the_candidates_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files(i: int) -> Mapping[str, str]:
        return {"subject.py": SUBJECT, "helper.py": NO_IMPORT} if 10 <= i <= 12 else tree(i, 13)

    names = linear(tmp_path / "repo", 24, files)
    assert bisect(tmp_path / "repo", names[1], names[24]) == 1
    said = capsys.readouterr().out
    assert "first bad: one of 4 commits" in said
    assert all(names[i] in said for i in range(10, 14))


def merged(folder: Path, broken: int, count: int = 200) -> tuple[list[str], list[int]]:
    """A main line with side branches of three commits, merged back; everything below commit ``broken`` is bad."""
    history = History(folder)
    bad: set[int] = set()

    def add(parents: tuple[int, ...]) -> int:
        is_bad = history.count + 1 == broken or any(p in bad for p in parents)
        mark = history.commit(
            f"Change {history.count + 1}",
            {"notes.txt": f"{history.count}\n", **tree(1 if is_bad else 0, 1)},
            parents,
        )
        if is_bad:
            bad.add(mark)
        return mark

    main_line = add(())
    while history.count < count:
        side = main_line
        for _ in range(3):
            side = add((side,))
        main_line = add((main_line,))
        main_line = add((main_line, side))
    return history.write(), sorted(bad)


@pytest.mark.parametrize("broken", [53, 101])  # the second is on a main line or a side branch, the first on the other
def test_merged_histories(tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: int) -> None:
    names, _ = merged(tmp_path / "repo", broken)
    assert bisect(tmp_path / "repo", names[1], "main") == 0
    assert first(capsys) == names[broken]


def test_along_first_parents_the_merge_is_the_culprit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, _ = merged(tmp_path / "repo", 53)  # on a side branch, merged by commit 56
    assert bisect(tmp_path / "repo", names[1], "main", "--first-parent") == 0
    assert first(capsys) == names[56]


def test_a_fix_and_a_regression_that_came_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = linear(tmp_path / "repo", 60, lambda i: tree(1 if 20 <= i < 30 or i >= 41 else 0, 1))
    assert bisect(tmp_path / "repo", names[1], names[60]) == 0
    assert first(capsys) in {names[20], names[41]}
    assert bisect(tmp_path / "repo", names[35], names[25], "--find-fix") == 0
    assert first(capsys) == names[30]


@pytest.mark.parametrize("step", [1, 5])
def test_interrupted_and_started_again_it_gives_the_same_answer(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    names = linear(tmp_path / "repo", 64, lambda i: tree(i, 23))
    words = ["bisect", "commit", CASE, "--repo", str(tmp_path / "repo"), "--good", names[1], "--bad", names[64]]
    words += ["--subject-file", "subject.py:Packs"]
    command = [sys.executable, "-m", "conformance", *words]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(own_cache.glob("bisect/*/verdicts/*.json"))) < step and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    known = len(list(own_cache.glob("bisect/*/verdicts/*.json")))
    before = state_of_checkout(tmp_path / "repo")
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"first bad: {names[23]}" in said
    assert f"continuing: {known} verdicts of the interrupted search are in {own_cache}" in said
    (log,) = own_cache.glob("bisect/*/steps.jsonl")
    assert known >= step
    assert sum(s.cached for s in steps(log.parent)) >= known
    assert not list(log.parent.glob("work-*"))
    assert state_of_checkout(tmp_path / "repo") == before
    assert main(words) == 0
    assert f"first bad: {names[23]}" in (said := capsys.readouterr().out)
    assert "continuing" not in said, "a search that ended is forgotten"


def test_a_command_is_asked_in_the_commit_s_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = linear(tmp_path / "repo", 30, lambda i: {"value": str(i), "run.sh": "exit $((`cat value` > 17 ? 3 : 0))"})
    assert search(tmp_path / "repo", names[2], "main", "--", "sh", "run.sh") == 0
    said = capsys.readouterr().out
    assert f"first bad: {names[18]}" in said
    assert "COMMAND/exit/3" in said


def test_every_size_is_a_verdict_without_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shader takes the next group's scale in the last commit."""
    right = (ROOT / "vulkan/glsl/embedding_q4gsw.comp").read_text()
    wrong = right.replace("column / group()", "(column + 4) / group()")
    assert wrong != right
    names = linear(tmp_path / "repo", 4, lambda i: {"shader.comp": wrong if i > 2 else right, "number": str(i)})
    prove = ["-m", "conformance", "prove", "every-size", "--shader", "shader.comp", "--groups", "scale", "--jobs", "1"]
    command = [sys.executable, *prove, "--variant", "flat-buffer-f32out-f32scale-buffer", "--out", str(tmp_path)]
    assert search(tmp_path / "repo", names[2], "main", "--case-seconds", "600", "--", *command) == 0
    assert first(capsys) == names[3]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("test `cat value` != 16 || kill -9 $$; exit $((`cat value` > 17 ? 3 : 0))", "exit code -9"),
        ("test `cat value` != 16 || exec no-such-program; exit $((`cat value` > 17 ? 3 : 0))", "exit code 127"),
    ],
)
def test_a_broken_harness_stops_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, said: str
) -> None:
    names = linear(tmp_path / "repo", 30, lambda i: {"value": str(i), "run.sh": script})
    assert search(tmp_path / "repo", names[2], "main", "--", "sh", "run.sh") == 1
    assert said in capsys.readouterr().err


def test_the_user_s_python_path_counts_at_every_step(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helper is in none of the commits: it is on the PYTHONPATH, given relative to where the search starts."""
    names = linear(tmp_path / "repo", 12, lambda i: {"subject.py": SWAPPED if i >= 7 else SUBJECT})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/helper.py").write_text(HELPER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "mine")
    assert bisect(tmp_path / "repo", names[1], "main") == 0
    assert first(capsys) == names[7]
    assert os.environ["PYTHONPATH"] == "mine"
    (log,) = own_cache.glob("bisect/*/steps.jsonl")
    judged = [s.commit for s in steps(log.parent) if not s.cached]
    assert len(judged) == len(set(judged)), "what a step judged is not judged again when the answer is verified"


@pytest.mark.parametrize("way", ["file", "replay", "command"])
def test_the_commands_by_hand_run_as_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """One helper comes with the commits, the other one with the user."""
    subject = [text.replace("from helper", "import mine\nfrom helper") for text in (SUBJECT, SWAPPED)]
    tree = {"helper.py": HELPER, "check.sh": "test `cat value` = 0"}
    names = linear(
        tmp_path / "a repo", 12, lambda i: {**tree, "value": str(int(i >= 7)), "subject.py": subject[i >= 7]}
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "mine"))
    ends = ["--repo", str(tmp_path / "a repo"), "--good", names[1], "--bad", "main"]
    case = CASE
    if way == "replay":
        recorded = Verdict(CASE, "PACK", "x", "FAIL", "PACK/layout/nibble_order")
        case = str(replay.write(tmp_path / "b", select(load(), ids=[CASE])[0], recorded, {}))
    file = [case, *ends, "--subject-file", "subject.py:Packs"]
    assert main(["bisect", "commit", *([*ends, "--", "sh", "check.sh"] if way == "command" else file)]) == 0
    by_hand = dict(re.findall(r"(good|bad) by hand: +(.+)", capfd.readouterr().out))
    env = with_q4gsw(tmp_path)
    ran = {what: subprocess.run(["bash", "-c", line], cwd="/", env=env, check=False) for what, line in by_hand.items()}
    assert {what: done.returncode for what, done in ran.items()} == {"good": 0, "bad": 1}


def test_a_flaky_commit_stops_the_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flag = tmp_path / "flag"
    script = (
        f"n=`cat value`; if [ $n = 16 ] && [ ! -e {flag} ]; then touch {flag}; exit 3; fi; exit $((n > 17 ? 3 : 0))"
    )
    names = linear(tmp_path / "repo", 30, lambda i: {"value": str(i), "run.sh": script})
    words = ["--repo", str(tmp_path / "repo"), "--good", names[2], "--bad", "main", "--repeat", "2"]
    assert main(["bisect", "commit", *words, "--", "sh", "run.sh"]) == 1
    assert "2 runs do not agree: FAIL COMMAND/exit/3, PASS" in capsys.readouterr().err


def test_ends_that_are_not_what_they_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = linear(tmp_path / "repo", 12, lambda i: tree(i, 6))
    git = ["git", "-C", str(tmp_path / "repo"), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    made = subprocess.run(
        [*git, "commit-tree", "-m", "alone", f"{names[1]}^{{tree}}"], capture_output=True, text=True, check=True
    )
    alone = made.stdout.strip()
    aside = subprocess.run(
        [*git, "commit-tree", "-p", names[2], "-m", "aside", f"{names[1]}^{{tree}}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth", "3", f"file://{tmp_path / 'repo'}", str(shallow)], check=True)
    for repo, good, bad, code, said in (
        ("repo", names[8], names[12], 1, "is not good"),
        ("repo", names[1], names[4], 1, "is good: the case passes there"),
        ("repo", names[12], names[1], 1, "swap them"),
        ("repo", names[3], names[3], 1, "the same commit"),
        ("repo", alone, names[12], 1, "unrelated"),
        ("repo", aside, names[12], 1, f"they part at {names[2][:10]}"),
        ("repo", "v9", names[12], 2, "no commit 'v9' there; git fetch --tags"),
        ("nowhere", "a", "b", 2, "no such directory"),
        ("shallow", "main~1", "main", 1, "shallow"),
    ):
        assert bisect(tmp_path / repo, good, bad) == code
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    plain = ["bisect", "commit", CASE, "--repo", str(tmp_path / "repo"), "--good", names[1], "--bad", names[12]]
    assert main(plain) == 2
    assert "no ExecuTorch repository" in capsys.readouterr().err
    assert main([*plain, "--subject-file", "gone.py:Packs"]) == 2
    assert "neither end has it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "signature", "state"),
    [
        ("PASS", "", "good"),
        ("FAIL", "PACK/layout/nibble_order", "bad"),
        ("FAIL", "PACK/layout/other", "skip"),
        ("ERROR", "PACK/raised/Untestable", "skip"),
        ("ERROR", "PACK/raised/EnvironmentProblem", "stop"),
        ("ERROR", "PACK/raised/BadObservation", "stop"),
        ("ERROR", "PACK/raised/Died", "skip"),
        ("UNSUPPORTED", "", "skip"),
    ],
)
def test_what_a_verdict_means(outcome: str, signature: str, state: str) -> None:
    assert state_of(outcome, signature, "PACK/layout/nibble_order") == state


def test_a_search_is_known_by_what_is_searched() -> None:
    one = Search("/r", "case", "file", "a", "b", ("f.py:C",))
    assert one.folder == Search("/r", "case", "file", "a", "b", ("f.py:C",), signature="x").folder
    assert one.folder != Search("/r", "case", "file", "a", "b", ("f.py:D",)).folder
    assert json.dumps(one.what)
