"""Subjects that answer a KERNEL case rightly, but not always: a seeded flaky fault."""

import os
from pathlib import Path
from typing import Any

from conformance import Arrays, Facts, operands
from reference.q4_embedding_ref import embedding_q4gsw
from reference.table.layouts import pack_flat


class Steady:
    """Always right."""

    def __init__(self) -> None:
        self.asked = 0

    def supports(self, case: Any) -> None:
        return None

    def run(self, case: Any) -> Arrays:
        self.asked += 1
        read = operands(case.question)
        out = embedding_q4gsw(
            pack_flat(read.values), read.scales, read.group_size, read.indices, output_dtype="float32"
        )
        if self.wrong():
            out[2, 40] *= 2
        return Arrays({"out": out}, Facts(arithmetic="host"))

    def wrong(self) -> bool:
        return False


class InProcess(Steady):
    """Wrong the third time that a process is asked."""

    def wrong(self) -> bool:
        return self.asked == 3


class AcrossLoads(Steady):
    """Every process but the first is wrong: that there was one is noted where the variable FLAKY says."""

    def __init__(self) -> None:
        super().__init__()
        mark = Path(os.environ["FLAKY"])
        self.later = mark.exists()
        mark.touch()

    def wrong(self) -> bool:
        return self.later
