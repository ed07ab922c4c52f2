"""Fake subjects that kill, hang, or answer differently the more they are asked: they test runs."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from conformance import Arrays, Case, Decision, Dispatch, Graph, Observation, operands
from reference.program.evaluate import evaluate
from reference.program.fusibility import violations
from reference.program.spec import PackedLookup, ProgramSpec
from tests.fakes.misbehaving import Good

#: The case at which something happens: neither the first nor the last that a run comes to.
AT = "pack/flat/v9-d32"


class KillsItsWorker(Good):
    """SIGKILLs the process that asked, an xdist worker, in the middle of a case."""

    def run(self, case: Case) -> Observation:
        if case.id == AT:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return super().run(case)


class KillsItsWorkerAfterwards(Good):
    """The same when it is let go, with the last case judged; the process that the user started lives."""

    def __del__(self) -> None:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os.kill(os.getppid(), signal.SIGKILL)


class Hangs(Good):
    """Never comes back from a case; a file where MARK says tells that it is there."""

    def run(self, case: Case) -> Observation:
        if case.id == AT:
            Path(os.environ["MARK"]).touch()
            time.sleep(600)
        return super().run(case)


class Marks(Good):
    """Leaves a file where MARK says, as soon as it is asked anything."""

    def __init__(self) -> None:
        Path(os.environ["MARK"]).touch()


class Wrong(Good):
    """Fails for tables of seven rows."""

    def run(self, case: Case) -> Observation:
        if "/v7" in case.id:
            raise KeyError(case.id)
        return super().run(case)


class Oracle(Good):
    """Packs, multiplies and decides by the reference, and raises for some programs."""

    def supports(self, case: Case) -> str | None:
        return None if case.stage in {"PACK", "KERNEL", "MATCH"} else "an oracle that was not asked for this"

    def run(self, case: Case) -> Observation:
        if case.stage == "MATCH":
            assert case.program is not None
            return self.match(case.program)
        return self.kernel(case) if case.stage == "KERNEL" else super().run(case)

    def kernel(self, case: Case) -> Observation:
        """Products without subnormals: what a device may do that declares nothing of them, and never strict."""
        assert isinstance(case.question, Dispatch)
        given = operands(case.question)
        outside = (given.indices < 0) | (given.indices >= len(given.values))
        with np.errstate(all="ignore"):  # infinities and NaN are among the scales
            products = given.values.astype(np.float64) * np.repeat(given.scales, given.group_size, axis=1)
            rows = products[np.where(outside, 0, given.indices)].astype(case.question.output_dtype)
        rows[np.abs(rows) < np.finfo(rows.dtype).smallest_normal] = 0
        rows[outside] = np.nan
        return Arrays(
            {"out": rows}, {"execution_modes": ("RoundingModeRTE 16", "RoundingModeRTE 32"), "precise": False}
        )

    def match(self, spec: ProgramSpec) -> Observation:
        if any(isinstance(step, PackedLookup) and (step.qmin, step.qmax) != (-8, 7) for step in spec.steps):
            raise KeyError("a packed lookup with other bounds")  # one of the two shards that its test runs has one
        decisions = [Decision(name, not why, min(why, default="")) for name, why in violations(spec).items()]
        known = evaluate(spec)
        outputs = {name: known.get(name, np.zeros(1, np.float32)) for name in spec.outputs()}
        return Graph(tuple(decisions), outputs, outputs)


class Counts(Good):
    """Right, but for what it has counted: the number is in every answer, and each tenth one is a failure."""

    def __init__(self) -> None:
        self.asked = 0

    def run(self, case: Case) -> Observation:
        self.asked += 1
        if self.asked % 10 == 0:
            raise (KeyError if self.asked % 20 else IndexError)(self.asked)
        packed = super().run(case)
        assert isinstance(packed, Arrays)
        return Arrays({**packed.arrays, "asked": np.array(self.asked)})
