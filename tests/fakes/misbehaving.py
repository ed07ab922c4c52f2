"""Fake subjects that misbehave in one way each: they test the runner, not an implementation."""

import ctypes
import os
import sys
import time

import numpy as np

from conformance import Arrays, Case, EnvironmentProblem, Observation, Table, table_values
from reference.table.layouts import pack_blocks, pack_flat, pack_linear_weight

PACKERS = {"flat": pack_flat, "linear_weight": pack_linear_weight, "blocks": pack_blocks}


class Good:
    """Packs by the reference itself; has nothing to say about other stages."""

    def supports(self, case: Case) -> str | None:
        return None if isinstance(case.question, Table) else "a miniature only packs"

    def run(self, case: Case) -> Observation:
        assert isinstance(case.question, Table)
        name = "blocks" if case.question.layout == "blocks" else "packed"
        return Arrays({name: PACKERS[case.question.layout](table_values(case.question))})


class SupportsNothing(Good):
    def supports(self, case: Case) -> str | None:
        return "a miniature that can do nothing"


class Misbehaves(Good):
    """Does something bad for cases of one row, and is right for all others."""

    def bad(self) -> Observation:
        raise NotImplementedError

    def run(self, case: Case) -> Observation:
        assert isinstance(case.question, Table)
        return self.bad() if case.question.vocab_size == 1 else super().run(case)


class Raises(Misbehaves):
    def bad(self) -> Observation:
        raise KeyError("a miniature's mistake")


class LacksDriver(Misbehaves):
    def bad(self) -> Observation:
        raise EnvironmentProblem("no Vulkan driver; install mesa-vulkan-drivers")


class Aborts(Misbehaves):
    def bad(self) -> Observation:
        os.abort()


class Segfaults(Misbehaves):
    def bad(self) -> Observation:
        ctypes.string_at(0)
        raise AssertionError


class Exits(Misbehaves):
    def bad(self) -> Observation:
        os._exit(3)


class Hangs(Misbehaves):
    def bad(self) -> Observation:
        time.sleep(3600)
        raise AssertionError


class Prints(Misbehaves):
    """Printing is no crime: it must not disturb the frames."""

    def bad(self) -> Observation:
        print("noise on standard output")
        sys.stdout.write("\x00" * 100000)
        sys.stdout.flush()
        return Arrays({"packed": np.zeros((1, 2), np.uint8)})


class ReturnsNonsense(Misbehaves):
    def bad(self) -> Observation:
        return "not an observation"  # type: ignore[return-value]


class ReturnsObjects(Misbehaves):
    def bad(self) -> Observation:
        return Arrays({"packed": np.array([object()])})
