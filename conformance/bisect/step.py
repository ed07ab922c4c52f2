"""One commit judged: by ``git bisect run``, in a process for each step, and for the ends and the answer's parents.

Exit codes are git's: 0 for the older end's state, 1 for the newer end's, 125 for a commit that cannot be tested,
129 to end the search.

Source: docs/bisecting.md.
"""

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from conformance.bisect.search import BAD, SKIP, STOP, Search, SearchEnded, Step, state_of, trouble, unanimous
from conformance.case.toml import case_from_toml
from conformance.files import append_line, make_folder, say, write_whole
from conformance.harness.observation import Raised
from conformance.harness.worker import Worker
from conformance.judging.judge import judge
from conformance.results.verdict import ERROR, FAIL, PASS, UNSUPPORTED, Outcome, Verdict
from conformance.sources.git import environment, git, text
from conformance.sources.tree import SourceTree, listing, tree_hash

CANNOT, END = 125, 129
#: What a shell answers for a command that is not there or not executable.
_NO_COMMAND = (126, 127)
_SIGNALLED = 128


def judge_commit(search: Search, commit: str) -> Step:
    """Return the step for ``commit``, from the search's memo where the same files were judged before; log it."""
    started = time.monotonic()
    try:
        tree = _tree(search, commit)
    except ValueError as error:
        return _logged(search, Step(commit, "none", SKIP, ERROR, "", str(error), 0.0))
    memo = search.memo / f"{tree}.json"
    if cached := memo.is_file():
        verdict = Verdict(**json.loads(memo.read_text(encoding="utf-8")))
    else:
        verdict = unanimous(commit[:10], [_judge(search, commit) for _ in range(search.repeat)])
        if verdict.outcome != ERROR or trouble(verdict.signature) == "Untestable":
            write_whole({make_folder(search.memo) / memo.name: json.dumps(vars(verdict), default=dict)})
    state = state_of(verdict.outcome, verdict.signature, search.signature)
    seconds = round(time.monotonic() - started, 2)
    step = Step(commit, tree, state, verdict.outcome, verdict.signature, verdict.reason, seconds, cached)
    if state == STOP:
        raise SearchEnded(f"stopped at {commit[:10]}: {verdict.outcome} {verdict.signature} {verdict.reason}")
    return _logged(search, step)


def _logged(search: Search, step: Step) -> Step:
    append_line(search.folder / "steps.jsonl", json.dumps(asdict(step)))
    return step


def _tree(search: Search, commit: str) -> str:
    """The hash of everything in the commit that the verdict can depend on."""
    if search.kind == "executorch-src":
        return tree_hash(listing(SourceTree(Path(search.repo), commit)))
    return text(search.clone, "rev-parse", f"{commit}^{{tree}}")


def python_path(kind: str) -> str:
    """Return the user's PYTHONPATH as every step of a search of that kind has to get it.

    A command takes it as it is, as it runs in the commit's files. For a subject its directories are those that the
    search was started in: git runs the steps elsewhere.
    """
    path = os.environ.get("PYTHONPATH", "")
    if kind == "command":
        return path
    return os.pathsep.join(str(Path(p).absolute()) for p in path.split(os.pathsep) if p)


def _judge(search: Search, commit: str) -> Verdict:
    if search.kind == "executorch-src":
        case = case_from_toml(search.case)
        with Worker(f"executorch-src:{search.repo}@{commit}", search.seconds) as worker:
            return judge(case, worker.run(case), worker.subject)
    files = Path(tempfile.mkdtemp(prefix="work-", dir=search.folder))
    try:
        extract(search.clone, commit, files)
        return _run_command(search, files) if search.kind == "command" else _judge_file(search, files)
    finally:
        shutil.rmtree(files, ignore_errors=True)


def extract(clone: Path, commit: str, files: Path) -> None:
    """Write a commit's files into ``files`` through an index of their own."""
    index = files.with_suffix(".index")
    for words in (("read-tree", commit), ("checkout-index", "--all", "--force", "--quiet")):
        git(clone, "--work-tree", str(files), *words, index=index)
    index.unlink()


def _judge_file(search: Search, files: Path) -> Verdict:
    """The verdict on the subject file among a commit's files; one that is missing or does not load is untestable."""
    case = case_from_toml(search.case)
    file, _, name = search.what[0].rpartition(":")
    if not (files / file).is_file():
        return judge(case, Raised("Untestable", f"the commit has no {file}", trouble=True), file)
    with Worker(f"{files / file}:{name}", search.seconds, files) as worker:
        observation = worker.run(case)
    if isinstance(observation, Raised) and observation.loading:
        observation = replace(observation, type="Untestable")
    verdict = judge(case, observation, worker.subject)
    return replace(verdict, reason=verdict.reason.replace(str(files), "").strip())


def _run_command(search: Search, files: Path) -> Verdict:
    """A command's exit code: 0 good, 125 cannot be tested, 126 and more a broken harness, any other the failure."""

    def verdict(outcome: Outcome, reason: str, signature: str = "") -> Verdict:
        return Verdict("", "COMMAND", shlex.join(search.what), outcome, signature, reason)

    try:
        done = subprocess.run(
            search.what,
            cwd=files,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=search.seconds,
            check=False,
            env=environment(),
        )
    except OSError as error:
        return verdict(ERROR, f"{search.what[0]} cannot be run: {error.strerror}")
    except subprocess.TimeoutExpired:
        return verdict(ERROR, f"no end within {search.seconds:g} s", "COMMAND/raised/Timeout")
    last = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2][-300:]
    code = done.returncode
    if code == 0:
        return verdict(PASS, last)
    if code == CANNOT:
        return verdict(UNSUPPORTED, last or "exit code 125")
    if code in _NO_COMMAND or code < 0 or code >= _SIGNALLED:
        return verdict(ERROR, f"exit code {code}: {last}")
    return verdict(FAIL, last, f"COMMAND/exit/{code}")


def main(arguments: list[str]) -> int:
    """Judge the commit that git bisect stands on, of the search in the folder that is the argument."""
    search = Search.load(Path(arguments[0]))
    commit = text(search.clone, "rev-parse", "--verify", "BISECT_HEAD")
    try:
        step = judge_commit(search, commit)
    except SearchEnded as ended:
        write_whole({search.stopped: str(ended)})
        return END
    say(f"  {step.line()}  {text(search.clone, 'log', '-1', '--format=%cs %s', commit)[:70]}")
    return CANNOT if step.state == SKIP else int((step.state == BAD) != search.find_fix)
