"""Seeded faults in scales and results of the forms that fuse although no shader reads or writes them."""

from typing import Any
from unittest import mock

import torch

from tests.planted.subjects import LosesFloat16, MatchBug, MissingCheck


class LosesBfloat16(LosesFloat16):
    """The operator's own float32 is handed on where the program had bfloat16."""

    near = "match/torchao/bfloat16"


class RefusesBfloat16(MatchBug):
    """Takes bfloat16 scales for what the operator cannot read."""

    near = "scales/bfloat16"
    signatures = ("MATCH/decision/missed_fusion",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl import matcher
        from impl.fusion import rules

        with mock.patch.object(rules, "_FUSED", (torch.float16, torch.float32)):
            return matcher.fuse_q4_embeddings(program)


class ScalesBug(MatchBug):
    def edit(self, fused: Any, report: Any) -> None:
        constants = {**fused.constants, **fused.state_dict}
        targets = {s.arg.name: s.target for s in fused.graph_signature.input_specs}
        for fusion in report.fused:
            self.wrong(constants[targets[fusion.scales]])

    def wrong(self, scales: Any) -> None:
        raise NotImplementedError


class ScalesOfAnotherRow(ScalesBug):
    """Reads scales of shape [V] from the last row on."""

    near = "one-scale-a-row"
    signatures = ("MATCH/array/values",)

    def wrong(self, scales: Any) -> None:
        if scales.shape[1] == 1:
            scales.copy_(scales.flip(0))


class ScalesRoundedToHalf(ScalesBug):
    """bfloat16 scales pass through float16, which has neither their range nor, below 2^-14, their bits."""

    near = "scales/bfloat16-bits"
    signatures = ("MATCH/array/values",)

    def wrong(self, scales: Any) -> None:
        if scales.dtype == torch.float32:
            scales.copy_(scales.half().float())


class AnyScaleType(MissingCheck):
    """Takes scales of any type."""

    reasons = ("scale_dtype",)
    near = "float64-scales"
    signatures = ("MATCH/decision/undue_fusion", "MATCH/raised")


ALL = (LosesBfloat16, RefusesBfloat16, ScalesOfAnotherRow, ScalesRoundedToHalf, AnyScaleType)
