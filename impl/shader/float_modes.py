"""Float execution modes in a SPIR-V module: read which are declared, and declare more.

Debian's glslc can declare one width a mode (its ``spirv_execution_mode`` keeps the last literal it
saw), and Vulkan wants both 16 and 32. So the GLSL declares nothing, and the modes that the device
allows are added to the compiled module, where each is two instructions.

Source: docs/contract.md section 3.4; SPIR-V specification 2.4 (order of instructions), 3.6 (execution modes).
"""

import struct

_MAGIC = 0x07230203
_HEADER = 5
_OP_EXTENSION, _OP_ENTRY_POINT, _OP_EXECUTION_MODE, _OP_CAPABILITY = 10, 15, 16, 17
_EXTENSION = b"SPV_KHR_float_controls"
#: Name -> (execution mode, the capability that allows it).
_MODES = {
    "DenormPreserve": (4459, 4464),
    "DenormFlushToZero": (4460, 4465),
    "SignedZeroInfNanPreserve": (4461, 4466),
    "RoundingModeRTE": (4462, 4467),
    "RoundingModeRTZ": (4463, 4468),
}
_NAMES = {mode: name for name, (mode, _capability) in _MODES.items()}


def declared(spirv: bytes) -> tuple[str, ...]:
    """The float modes that the module declares, as "RoundingModeRTE 32", sorted."""
    modes = (words for op, words in _instructions(spirv) if op == _OP_EXECUTION_MODE and words[2] in _NAMES)
    return tuple(sorted({f"{_NAMES[mode]} {width}" for _word, _entry, mode, width in modes}))


def declare(spirv: bytes, modes: tuple[str, ...]) -> bytes:
    """The module with every mode of ``modes`` ("RoundingModeRTE 32") declared for its entry point."""
    missing = sorted(set(modes) - set(declared(spirv)))
    if not missing:
        return spirv
    pairs = [_parse(mode) for mode in missing]
    instructions = _instructions(spirv)
    entry = next(words[2] for op, words in instructions if op == _OP_ENTRY_POINT)
    capabilities = {words[1] for op, words in instructions if op == _OP_CAPABILITY}
    new_capabilities = {_MODES[name][1] for name, _width in pairs} - capabilities
    body = [words for op, words in instructions if op == _OP_CAPABILITY]
    body += [(2 << 16 | _OP_CAPABILITY, capability) for capability in sorted(new_capabilities)]
    extension = _extension_instruction()
    extensions = [words for op, words in instructions if op == _OP_EXTENSION]
    body += extensions if extension in extensions else [*extensions, extension]
    rest = [(op, words) for op, words in instructions if op not in {_OP_CAPABILITY, _OP_EXTENSION}]
    last_entry = max(i for i, (op, _words) in enumerate(rest) if op == _OP_ENTRY_POINT)
    body += [words for _op, words in rest[: last_entry + 1]]
    body += [(4 << 16 | _OP_EXECUTION_MODE, entry, _MODES[name][0], width) for name, width in pairs]
    body += [words for _op, words in rest[last_entry + 1 :]]
    flat = [word for words in body for word in words]
    return spirv[: 4 * _HEADER] + struct.pack(f"<{len(flat)}I", *flat)


def _parse(mode: str) -> tuple[str, int]:
    name, _space, width = mode.partition(" ")
    if name not in _MODES or width not in {"16", "32", "64"}:
        raise ValueError(f"unknown float mode {mode!r}: known are {', '.join(_MODES)}, each with 16, 32 or 64")
    return name, int(width)


def _extension_instruction() -> tuple[int, ...]:
    text = _EXTENSION + b"\0" * (4 - len(_EXTENSION) % 4)
    words = struct.unpack(f"<{len(text) // 4}I", text)
    return ((len(words) + 1) << 16 | _OP_EXTENSION, *words)


def _instructions(spirv: bytes) -> list[tuple[int, tuple[int, ...]]]:
    if len(spirv) % 4 or len(spirv) < 4 * _HEADER or struct.unpack_from("<I", spirv)[0] != _MAGIC:
        raise ValueError(f"not a little-endian SPIR-V module ({len(spirv)} bytes)")
    words = struct.unpack(f"<{len(spirv) // 4}I", spirv)
    instructions, at = [], _HEADER
    while at < len(words):
        length = words[at] >> 16
        if length == 0 or at + length > len(words):
            raise ValueError(f"broken SPIR-V module: instruction at word {at} has length {length}")
        instructions.append((words[at] & 0xFFFF, words[at : at + length]))
        at += length
    return instructions
