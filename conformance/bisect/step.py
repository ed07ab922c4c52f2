"""One commit asked: run by ``git bisect run`` as ``python -m conformance.bisect.step FOLDER``, and for the ends.

Exit codes are git's: 0 for the older end's state, 1 for the newer end's, 125 for a commit that cannot be tested,
129 to end the search.

Source: docs/bisecting.md.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from conformance.bisect.key import kept, named_files, surroundings, verdict_file
from conformance.bisect.search import (
    BAD,
    GOOD,
    SKIP,
    STOP,
    Search,
    Step,
    disagreement,
    log_step,
    state_of,
)
from conformance.case.toml import case_from_toml
from conformance.files import make_folder, write_whole
from conformance.harness.worker import Worker
from conformance.judging.judge import judge
from conformance.sources.git import environment, git
from conformance.sources.tree import SourceTree, listing, tree_hash

CANNOT, END = 125, 129
#: What a shell says of a command that is not there or not executable.
_NO_COMMAND = (126, 127)
_SIGNALLED = 128


def ask(search: Search, commit: str) -> Step:
    """Return what ``commit`` is, from the cache of verdicts where its files were judged before, and log it."""
    started = time.monotonic()
    try:
        tree = _tree(search, commit)
    except ValueError as error:
        step = Step(commit, "none", SKIP, "ERROR", "", str(error), 0.0)
        log_step(search.folder, step)
        return step
    file = verdict_file(_asked(search, tree))
    found = kept(file, search.since)
    cached = bool(found)
    if not cached:
        answers = [_answer(search, commit) for _ in range(search.repeat)]
        found = _unanimous(answers)
        if found["outcome"] in {"PASS", "FAIL", "UNSUPPORTED"} or found["signature"].endswith("/Untestable"):
            write_whole({make_folder(file.parent) / file.name: json.dumps(found)})
    state = STOP if found["outcome"] == "FLAKY" else state_of(found["outcome"], found["signature"], search.signature)
    seconds = round(time.monotonic() - started, 2)
    step = Step(commit, tree, state, found["outcome"], found["signature"], found["reason"], seconds, cached)
    log_step(search.folder, step)
    return step


def _tree(search: Search, commit: str) -> str:
    """The hash of everything in the commit that the verdict can depend on."""
    if search.kind == "executorch-src":
        return tree_hash(listing(SourceTree(Path(search.repo), commit)))
    return git(search.clone, "rev-parse", f"{commit}^{{tree}}").decode().strip()


def _asked(search: Search, tree: str) -> list[object]:
    """What a verdict is kept under: a change of any of this is another question."""
    asked = [search.case, search.kind, search.what, search.repeat, tree]
    if search.kind == "command":
        files = search.folder / "work-"  # the directory's own name does not count
        return [*asked, named_files(search.what, files), surroundings("", python_path=python_path(search.kind))]
    return [*asked, surroundings(case_from_toml(search.case).stage, python_path=python_path(search.kind))]


def python_path(kind: str) -> str:
    """Return the user's PYTHONPATH as every step of a search of that kind has to get it.

    A command takes it as it is, as it runs in the commit's files. For a subject its directories are those that the
    search was started in: git runs the steps elsewhere.
    """
    given = os.environ.get("PYTHONPATH", "")
    if kind == "command":
        return given
    return os.pathsep.join(str(Path(p).absolute()) for p in given.split(os.pathsep) if p)


def _unanimous(answers: list[dict[str, str]]) -> dict[str, str]:
    said = disagreement([(a["outcome"], a["signature"], a["digest"]) for a in answers])
    return {"outcome": "FLAKY", "signature": "", "reason": said} if said else answers[0]


def _answer(search: Search, commit: str) -> dict[str, str]:
    if search.kind == "executorch-src":
        return _verdict(search, f"executorch-src:{search.repo}@{commit}")
    files = Path(tempfile.mkdtemp(prefix="work-", dir=search.folder))
    try:
        extract(search.clone, commit, files)
        if search.kind == "command":
            return _command(search, files)
        file, _, name = search.what[0].rpartition(":")
        if not (files / file).is_file():
            return _said("ERROR", "FILE/raised/Untestable", f"the commit has no {file}")
        return _verdict(search, f"{files / file}:{name}", import_from=files)
    finally:
        shutil.rmtree(files, ignore_errors=True)


def extract(clone: Path, commit: str, files: Path) -> None:
    """Write a commit's files into ``files`` through an index of their own."""
    index = environment() | {"GIT_INDEX_FILE": str(files.with_suffix(".index"))}
    for words in (("read-tree", commit), ("checkout-index", "--all", "--force", "--quiet")):
        subprocess.run(
            ["git", "--git-dir", str(clone), "--work-tree", str(files), *words], cwd=files, env=index, check=True
        )
    files.with_suffix(".index").unlink()


def _verdict(search: Search, subject: str, import_from: Path | None = None) -> dict[str, str]:
    case = case_from_toml(search.case)
    with _importing_from(import_from), Worker(subject, search.seconds) as worker:
        verdict = judge(case, worker.run(case), worker.subject)
    reason = verdict.reason.replace(str(import_from), "").strip() if import_from else verdict.reason
    signature = verdict.signature
    if "cannot be loaded:" in reason and import_from is not None:  # a subject file that does not import is the commit's
        signature = signature.replace("EnvironmentProblem", "Untestable")
    return _said(verdict.outcome, signature, reason, verdict.digest)


def _said(outcome: str, signature: str, reason: str, digest: str = "") -> dict[str, str]:
    return {"outcome": outcome, "signature": signature, "reason": reason, "digest": digest}


@contextlib.contextmanager
def _importing_from(files: Path | None) -> Iterator[None]:
    """Let a child import from ``files`` before what the user's PYTHONPATH names."""
    before = os.environ.get("PYTHONPATH")
    if files is not None:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(files), before or ""]))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


def _command(search: Search, files: Path) -> dict[str, str]:
    """A command's exit code: 0 good, 125 cannot be tested, from 128 a broken harness, any other the failure."""
    try:
        done = subprocess.run(
            list(search.what),
            cwd=files,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=search.seconds,
            check=False,
            env=environment(),
        )
    except OSError as error:
        return _said("ERROR", "", f"{search.what[0]} cannot be run: {error.strerror}")
    except subprocess.TimeoutExpired:
        reason = f"no end within {search.seconds:g} s"
        return _said("ERROR", "COMMAND/raised/Timeout", reason)
    said = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2][-300:]
    code = done.returncode
    if code == 0:
        return _said("PASS", "", said)
    if code == CANNOT:
        return _said("UNSUPPORTED", "", said or "exit code 125")
    if code in _NO_COMMAND or code < 0 or code >= _SIGNALLED:
        return _said("ERROR", "", f"exit code {code}: {said}")
    return _said("FAIL", f"COMMAND/exit/{code}", said)


def exit_code(search: Search, step: Step) -> int:
    """Return what git bisect is told: the older end's state is 0."""
    older = BAD if search.find_fix else GOOD
    return {SKIP: CANNOT, STOP: END}.get(step.state, 0 if step.state == older else 1)


def main(arguments: list[str]) -> int:
    """Ask the commit that git bisect stands on."""
    search = Search.load(Path(arguments[0]))
    commit = git(search.clone, "rev-parse", "--verify", "BISECT_HEAD").decode().strip()
    step = ask(search, commit)
    subject = git(search.clone, "log", "-1", "--format=%cs %s", commit).decode(errors="replace").strip()
    print(f"  {step.line()}  {subject[:70]}", flush=True)
    write_whole({search.folder / "last.json": json.dumps(asdict(step))})
    return exit_code(search, step)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
