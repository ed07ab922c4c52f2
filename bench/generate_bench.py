"""Generated programs a second on one core: drawing, building, fusing twice, every oracle.

    python -m bench.generate_bench [--programs 600] [--json FILE]

Prints processor seconds by part, and exits 1 below 60 programs a second. On a machine that others use too,
neighbours on the same core slow processor seconds as well: repeat when it is quiet.
"""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from bench.common import parser, write_json
from conformance.case.case import Case
from conformance.case.toml import case_from_toml, case_to_toml
from conformance.generate.search import search
from conformance.judging.judge import judge
from conformance.subjects import impl

REQUIRED_RATE = 60.0


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write JSON; 0 when the rate is reached and every program passes."""
    command = parser("generate_bench", __doc__)
    command.add_argument("--programs", type=int, default=600)
    command.add_argument("--seed", type=int, default=0)
    options = command.parse_args(argv)
    torch.set_num_threads(1)

    def run(case: Case) -> Any:
        assert case.program is not None  # noqa: S101 - each generated case has one
        return impl.run_match(case.program)

    def draw(seed: str) -> None:
        search(lambda case: cases.append(case) or "", seed=seed, count=options.programs)

    cases: list[Case] = []
    draw("imports and caches")
    for case in cases[:20]:
        run(case)
    cases.clear()
    seconds: dict[str, float] = {}

    def timed(part: str, work: Callable[[Any], Any], over: Iterable[Any]) -> list[Any]:
        start = time.process_time()  # not the clock on the wall: the machine may be shared
        results = [work(one) for one in over]
        seconds[part] = time.process_time() - start
        return results

    timed("draw", draw, [str(options.seed)])
    timed("to the child and back", lambda case: case_from_toml(case_to_toml(case)), cases)
    seen = timed("build, fuse twice, observe", run, cases)
    pairs = zip(cases, seen, strict=True)
    outcomes = timed("judge", lambda pair: judge(*pair, "impl").outcome, pairs)
    for part, taken in seconds.items():
        print(f"{part:28} {1e3 * taken / options.programs:7.2f} ms a program")
    rate = options.programs / sum(seconds.values())
    failed = sum(outcome != "PASS" for outcome in outcomes)
    print(f"{rate:.1f} programs a second (required: {REQUIRED_RATE:.0f}); {failed} of {options.programs} failed")
    write_json(options.json, {"programs": options.programs, "failed": failed, "rate": rate, "seconds": seconds})
    return 0 if rate >= REQUIRED_RATE and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
