"""What a SPIR-V module says about its arithmetic. Needs neither torch nor a Vulkan loader.

Source: docs/contract.md 3.3; SPIR-V specification 3.20 (decorations), 3.52.13 (arithmetic instructions).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

_FLOAT_MULTIPLY = (133, 142)  # OpFMul, OpVectorTimesScalar
_DECORATE, _NO_CONTRACTION, _BINDING = 71, 42, 33


def is_precise(spirv: bytes) -> bool:
    """Whether every float multiplication of a SPIR-V module is decorated NoContraction (GLSL: precise)."""
    decorated: set[int] = set()
    products: set[int] = set()
    for opcode, operand in _instructions(np.frombuffer(spirv, "<u4")):
        if opcode == _DECORATE and operand[1] == _NO_CONTRACTION:
            decorated.add(int(operand[0]))
        elif opcode in _FLOAT_MULTIPLY:
            products.add(int(operand[1]))
    return products <= decorated


def _instructions(words: Any) -> Iterator[tuple[int, Any]]:
    """Opcode and operands of every instruction after the five words of the header."""
    at = 5
    while at < len(words):
        length = int(words[at]) >> 16
        yield int(words[at]) & 0xFFFF, words[at + 1 : at + length]
        at += length


def bindings(spirv: bytes) -> set[int]:
    """The binding numbers that a SPIR-V module's resources are decorated with."""
    found = _instructions(np.frombuffer(spirv, "<u4"))
    return {int(operand[2]) for opcode, operand in found if opcode == _DECORATE and operand[1] == _BINDING}
