"""Detection power: mutants of the implementation, of the oracles and of the judges, and who notices them.

    ./dev mutate --files 'impl/*' --sample 60 --seed 1

A mutant of impl/ or vulkan/glsl is judged by the suite alone, at level gate; one of reference/ or conformance/judging
by the project's tests: by those that run the changed line, the cheapest first, until one fails. The journal keeps what
is known: the same command goes on where it ended, and a survivor is asked again when a case or a test has changed.
Exit code 1: a mutant survives that equivalents.toml does not list, or an entry there is wrong.
"""

import argparse
import fnmatch
import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tests.meta import shader_mutants
from tests.meta.mutation.judges import Judge, Plan, Suite, Tests, copied, in_fork, preload
from tests.meta.mutation.mutants import ROOT, Draft, Mutant, drafts, sample

FILES = ("impl/*", "vulkan/glsl/*", "reference/*", "conformance/judging/*")
KILLED, EQUIVALENT, SURVIVED, NOT_RUN = "killed", "equivalent", "survived", "not run"
_OUTCOMES = (KILLED, EQUIVALENT, SURVIVED, NOT_RUN)
#: Seconds that a mutant may take beyond five times what its questions take without it.
_PATIENCE = 30
Result = dict[str, Any]


def main(words: list[str]) -> int:
    """Judge mutants, print the tables, and return the exit code."""
    options = _options(words)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [f for f in listed.split() if f.endswith((".py", ".comp")) and _named(f, FILES)]
    files = [f for f in files if _named(f, options.files)]
    equivalents = tomllib.loads((Path(__file__).parent / "equivalents.toml").read_text())["equivalent"]
    stale = [f"no such line in {e['file']}: {e['old']}" for e in equivalents if not _there(e)]
    every = [d for f in files for d in drafts(f) if _named(d.operator, options.operators)]
    wanted = sample(every, options.sample or len(every), options.seed)
    part, parts = map(int, options.shard.split("/"))
    wanted = wanted[part - 1 :: parts]
    options.state.mkdir(parents=True, exist_ok=True)
    preload()
    results = []
    with copied() as tree:
        for judge in (Suite(), Tests()):
            own = [d for d in wanted if d.file.startswith(("impl/", "vulkan/")) == isinstance(judge, Suite)]
            results += _judged(own, judge, tree, options) if own else []
    for result in results:
        entry = next((e for e in equivalents if all(e[k] == result[k] for k in ("file", "old", "new"))), None)
        if entry and result["outcome"] == KILLED:
            stale.append(f"not equivalent, {result['by']}: {entry['file']}: {entry['new']}")
        elif entry:
            result["outcome"] = EQUIVALENT
    show(results, len(every), options.seed)
    for line in stale:
        print(f"equivalents.toml: {line}")
    return 1 if stale or any(r["outcome"] in {SURVIVED, NOT_RUN} for r in results) else 0


def _options(words: list[str]) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="./dev mutate", description=__doc__, formatter_class=formatter)
    parser.add_argument("--files", nargs="+", default=["*"], metavar="GLOB", help="default: all that are mutated")
    parser.add_argument("--operators", nargs="+", default=["*"], metavar="GLOB", help="such as token or 'relaxed *'")
    parser.add_argument("--sample", type=int, help="as many mutants, drawn by the seed; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", default="1/1", help="I/N: every Nth mutant, from the Ith on")
    parser.add_argument("--ask", nargs="+", default=["*"], metavar="GLOB", help="stages, and files of tests")
    parser.add_argument("--seconds", type=float, default=60, help="of questions a mutant (%(default)s)")
    parser.add_argument("--state", type=Path, default=ROOT / "report" / "mutation", help="journal and measurements")
    return parser.parse_args(words)


def _named(text: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(text, glob) for glob in globs)


def _there(entry: dict[str, str]) -> bool:
    """Whether the lines that an entry changes are in its file, one after the other."""
    path = ROOT / entry["file"]
    lines = [line.strip() for line in path.read_text().splitlines()] if path.is_file() else []
    return f"\n{entry['old']}\n" in "\n".join(["", *lines, ""])


def _judged(own: list[Draft], judge: Judge, tree: Path, options: argparse.Namespace) -> list[Result]:
    """What becomes of mutants: read from the journal, or judged and written there."""
    names = [name for name in judge.batches() if _named(name, options.ask)]
    states = hashlib.sha256("".join(judge.state(n) for n in names).encode()).hexdigest()[:16]
    journal = options.state / "mutants.jsonl"
    lines = map(json.loads, journal.read_text().splitlines()) if journal.is_file() else ()
    known = {r["name"]: r for r in lines if r["outcome"] in {KILLED, EQUIVALENT} or r["state"] == states}
    mutants = [(d, d.mutant) for d in own]
    left = [(d, m) for d, m in mutants if m.name not in known]
    measured = {}
    if left:
        shown = tqdm(names, unit=" batches", desc="what they run", disable=None)
        measured = {name: judge.measured(name, tree, options.state) for name in shown}
    with tqdm(left, unit=" mutants", disable=None) as progress:
        for draft, mutant in progress:
            plan = judge.plan(draft, measured, options.seconds)
            outcome, by = _outcome(mutant, tree, judge, plan) if plan.asked else (NOT_RUN, "")
            known[mutant.name] = {
                "name": mutant.name, "file": mutant.file, "line": mutant.line, "operator": mutant.operator,
                "old": mutant.old, "new": mutant.new, "outcome": outcome, "by": by,
                "asked": sum(map(len, plan.asked.values())), "unasked": plan.unasked, "state": states,
                "diff": mutant.diff() if outcome in {SURVIVED, NOT_RUN} else "", "contract": mutant.section(),
            }  # fmt: skip
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[mutant.name]) + "\n")
    return [dict(known[m.name]) for _, m in mutants]


def _outcome(mutant: Mutant, tree: Path, judge: Judge, plan: Plan) -> tuple[str, str]:
    """What becomes of a mutant, and who found it; a shader that nobody finds wrong goes to the proof."""
    path = tree / mutant.file
    right = path.read_text()
    path.write_text(mutant.text)
    try:
        cold = mutant.file.startswith("impl/shader/")
        by = in_fork(tree, lambda: judge.wrong(plan.asked), _PATIENCE + 5 * plan.seconds, cold=cold)
    except TimeoutError:
        by = "takes too long"
    except EOFError:
        by = "the process died, or the project cannot be imported"
    finally:
        path.write_text(right)
    if by or not mutant.file.endswith(".comp"):
        return (KILLED, by) if by else (SURVIVED, "")
    token = next(m for m in shader_mutants.mutants(Path(mutant.file).stem) if m.text() == mutant.text)
    with tempfile.TemporaryDirectory() as folder:
        found, why = shader_mutants.judged(token, Path(folder))
    equal = found in {shader_mutants.EQUIVALENT, shader_mutants.SAME}
    return (EQUIVALENT, found) if equal else (SURVIVED, f"{found} by prove every-size: {why}")


def show(results: list[Result], population: int, seed: int) -> None:
    """Print tables by file and by operator, and every survivor."""
    for kind in ("file", "operator"):
        print(f"{kind:44}" + "".join(f"{name:>12}" for name in _OUTCOMES) + f"{'detected':>12}")
        for value in sorted({r[kind] for r in results}) + (["all"] if kind == "file" else []):
            print(f"{value:44}{_counted([r for r in results if value in {r[kind], 'all'}])}")
        print()
    for r in results:
        if r["outcome"] in {SURVIVED, NOT_RUN}:
            near = f"contract {r['contract']}" if r["contract"] else "no section of the contract is near"
            rest = f", {r['unasked']} more run it" if r["unasked"] else ""
            where = f"{r['outcome']}: {r['file']}:{r['line']} [{r['operator']}] {near}"
            print(f"{where}; {r['asked']} asked{rest} {r['by']}\n{r['diff']}\n")
    print(f"{len(results)} of {population} mutants, seed {seed}")


def _counted(results: list[Result]) -> str:
    counts = Counter(r["outcome"] for r in results)
    telling = len(results) - counts[EQUIVALENT]
    score = f"{100 * counts[KILLED] / telling:.0f} %" if telling else "-"
    return "".join(f"{counts[name]:12}" for name in _OUTCOMES) + f"{score:>12}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
