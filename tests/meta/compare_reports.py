"""Compare a report of version 0.1 with one of 0.2: outcomes, and signatures through docs/signatures-0.2.toml.

    python -m tests.meta.compare_reports OLD NEW

Exit code 1 where an outcome differs, a signature is not the renamed one, or a case is gone. Generated shards are
compared by their counts.
"""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Rows = dict[str, dict[str, Any]]


def rows(report: str) -> Rows:
    """The verdict lines of the report in a directory, by case."""
    lines = (json.loads(line) for line in (Path(report) / "verdicts.jsonl").read_text().splitlines())
    return {line["case"]: line for line in lines if "case" in line}


def renamed() -> set[tuple[str, str]]:
    """Pairs of an old signature and a new one that stand for the same failure."""
    table = tomllib.loads((ROOT / "docs" / "signatures-0.2.toml").read_text())
    return {(entry["old"], entry["new"]) for entry in table["renamed"]}


def differences(old: Rows, new: Rows, pairs: set[tuple[str, str]]) -> list[str]:
    """One line for each case that is gone, has another outcome, or a signature that no pair explains."""
    cases = {case: row for case, row in old.items() if not case.startswith("gen/")}
    lines = [f"{case}: gone" for case in sorted(cases.keys() - new.keys())]
    for case in sorted(cases.keys() & new.keys()):
        before, after = cases[case], new[case]
        names = before["signature"], after.get("signature", "")
        if before["outcome"] != after["outcome"]:
            lines.append(f"{case}: {before['outcome']} -> {after['outcome']}")
        elif names[0] != names[1] and names not in pairs:
            lines.append(f"{case}: {names[0]} -> {names[1]}")
    shards = [sum(case.startswith("gen/") for case in side) for side in (old, new)]
    return lines + ([f"generated shards: {shards[0]} -> {shards[1]}"] if shards[0] != shards[1] else [])


if __name__ == "__main__":
    before, after = rows(sys.argv[1]), rows(sys.argv[2])
    lines = differences(before, after, renamed())
    print("\n".join([*lines, f"{len(before)} verdicts before, {len(after)} after, {len(lines)} differences"]))
    sys.exit(1 if lines else 0)
