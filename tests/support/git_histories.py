"""Generated repositories of many commits, made in one go by git fast-import: histories for bisection to search."""

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from conformance.bisect.search import Step

#: A subject file that packs as ``codes`` and ``join`` say; both are what the planted regressions touch.
SUBJECT = """
import numpy as np
from conformance.case.operands import table_values
from conformance.harness.observation import Arrays
from helper import OFFSET


class Packs:
    def supports(self, case):
        return None

    def run(self, case):
        codes = (table_values(case.question) + OFFSET).astype(np.uint8)
        return Arrays({"packed": codes[:, 1::2] << 4 | codes[:, ::2]})
"""
HELPER = "OFFSET = 8\n"
#: What breaks it, and in which way.
SWAPPED = SUBJECT.replace("codes[:, 1::2] << 4 | codes[:, ::2]", "codes[:, ::2] << 4 | codes[:, 1::2]")
NO_IMPORT = "OFFSETS = 8\n"


class History:
    """Writes commits, each a whole tree of text files, into a new repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stream: list[bytes] = []
        self.count = 0
        subprocess.run(["git", "init", "-q", "-b", "main", str(folder)], check=True)

    def commit(self, message: str, files: Mapping[str, str], parents: tuple[int, ...] = ()) -> int:
        """Add a commit and return its mark; it is what branch main stands on until the next one."""
        self.count += 1
        who = f"t <t@example.org> {1700000000 + self.count * 60} +0000".encode()
        lines = [b"commit refs/heads/main", b"mark :%d" % self.count, b"author " + who, b"committer " + who]
        lines += [b"data %d\n%s" % (len(message.encode()), message.encode())]
        lines += [b"%s :%d" % (b"merge" if at else b"from", parent) for at, parent in enumerate(parents)]
        lines += [b"deleteall"]
        for path, text in files.items():
            lines += [b"M 100644 inline " + path.encode(), b"data %d\n%s" % (len(text.encode()), text.encode())]
        self.stream.append(b"\n".join(lines) + b"\n")
        return self.count

    def write(self) -> list[str]:
        """Make the repository; returns the commits' names by mark (index 0 is unused)."""
        marks = self.folder / ".git" / "marks"
        command = ["git", "-C", str(self.folder), "fast-import", "--quiet", "--force", f"--export-marks={marks}"]
        subprocess.run(command, input=b"".join(self.stream), check=True)
        names = dict(line.split() for line in marks.read_text().splitlines())
        return [""] + [names[f":{i}"] for i in range(1, self.count + 1)]


def linear(folder: Path, count: int, files: Callable[[int], Mapping[str, str]]) -> list[str]:
    """A history of ``count`` commits in a row; ``files(i)`` is commit i's tree, beside a file that always changes."""
    history = History(folder)
    for i in range(1, count + 1):
        parents = (i - 1,) if i > 1 else ()
        history.commit(f"Change {i}", {"notes.txt": f"{i}\n", **files(i)}, parents)
    return history.write()


def steps(folder: Path) -> list[Step]:
    """The steps in the log of a search."""
    return [Step(**json.loads(line)) for line in (folder / "steps.jsonl").read_text().splitlines()]
