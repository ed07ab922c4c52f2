"""Runs a reader of an untrusted file in a child process with bounds on memory, time and what it may write.

The child returns one line of JSON: a result, or what is wrong with the file. A child that dies or runs
into a bound is the file's fault and reads as a ``BadFile`` of one line.
"""

import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import warnings
from pathlib import Path

from conformance.harness.errors import BadFile, CannotRun, EnvironmentProblem, one_line
from conformance.harness.process import Printed, Process

#: Address space of the child: what torch and executorch map, and several copies of the file.
MEMORY = 8 << 30
COPIES = 12
SECONDS = 120
WRITTEN = 1 << 30
_MOST_ANSWER = 64 << 20


def run(task: str, path: Path, *arguments: str, memory: int = MEMORY, seconds: int = SECONDS) -> str:
    """Run ``task`` ("module:function", called with the path and arguments) in a child and return its text.

    Args:
        task: a function of str arguments that returns a str.
        path: the file it reads.
        arguments: further arguments.
        memory: bytes of address space that the child may use, besides ``COPIES`` times the file's size.
        seconds: processor time that it may use.

    Raises:
        BadFile: the file does not exist, is not what the reader takes, or drove the child into a bound.
    """
    if not path.is_file():
        raise BadFile(f"{path}: no such file")
    bound = memory + COPIES * path.stat().st_size
    command = [
        sys.executable,
        "-m",
        "conformance.harness.limited",
        task,
        str(bound),
        str(seconds),
        str(path),
        *arguments,
    ]
    root = Path(__file__).parent.parent.parent
    search = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    wall = 60 + 4 * seconds  # a child that sleeps uses no processor time
    printed = Printed()
    with tempfile.TemporaryFile() as answers:
        child = Process([*command, str(answers.fileno())], {**os.environ, "PYTHONPATH": search}, [answers.fileno()])
        try:
            code = child.wait(wall, printed)
        finally:
            child.end()
        answers.seek(0)
        line = answers.readline(_MOST_ANSWER)
    if code is None:
        raise BadFile(f"{path}: not read within {wall} s")
    if code or not line.endswith(b"\n"):
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if code == -signal.SIGXCPU:
            why = f"more than {seconds} s of processor time"
        said = printed.text().splitlines()[-1:]
        raise BadFile(": ".join([f"{path}: reading it ended the reader ({why})", *said]))
    answer = json.loads(line)
    if "error" in answer:
        raise BadFile(answer["error"])
    return str(answer["result"])


def _child(task: str, memory: str, seconds: str, *rest: str) -> None:
    """Set the bounds, then import and run the task, and write its answer to the last of ``rest``, a file."""
    *arguments, answers = rest
    output = os.fdopen(int(answers), "w")
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (WRITTEN, WRITTEN))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
    module, _, function = task.partition(":")
    try:
        answer = {"result": getattr(importlib.import_module(module), function)(*arguments)}
    except (BadFile, CannotRun, EnvironmentProblem) as error:
        answer = {"error": str(error).replace("\n", " ")}
    except MemoryError:
        answer = {"error": f"{arguments[0]}: reading it takes more than {int(memory) >> 20} MiB"}
    except Exception as error:  # noqa: BLE001 - whatever a reader raises is about the file; it has no trust to lose
        answer = {"error": f"{arguments[0]}: cannot be read ({one_line(error)})"}
    output.write(json.dumps(answer) + "\n")
    output.flush()
    os._exit(0)  # no destructor of a half-read file runs


if __name__ == "__main__":
    _child(*sys.argv[1:])
