"""A subject whose answers depend on the executorch release that is installed: tests make such releases."""

import importlib

import numpy as np

from conformance import Arrays, Case, Observation, Table
from tests.fakes.misbehaving import Good


class Packs(Good):
    """Packs right, but for one-row tables: there ``executorch.packer.FLIP`` is laid over every byte."""

    def run(self, case: Case) -> Observation:
        assert isinstance(case.question, Table)
        right = super().run(case)
        assert isinstance(right, Arrays)
        flip = importlib.import_module("executorch.packer").FLIP if case.question.vocab_size == 1 else 0
        return Arrays({name: np.bitwise_xor(np.asarray(a), a.dtype.type(flip)) for name, a in right.arrays.items()})
