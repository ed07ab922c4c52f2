"""Planted bugs for the proofs: our own GLSL with one value, one code or one scale wrong in a single place.

``planted(name, directory)`` writes the changed shader and returns its path, for ``prove --shader PATH``.
"""

from pathlib import Path

SHADER = Path(__file__).parent.parent.parent / "vulkan" / "glsl" / "embedding_q4gsw.comp"

_PRODUCT = "  return product;"
_VALUES = "  return vec4(ivec4(nibbles) - 8);"
BUGS = {
    # One unit in the last place for a single scale bit pattern, in the first of four columns.
    "one_ulp": (
        _PRODUCT,
        (
            "  vec4 result = product;\n"
            "  if (floatBitsToUint(scale) == 0x3EAAAAABu) result.x = uintBitsToFloat(floatBitsToUint(result.x) + 1u);\n"
            "  return result;"
        ),
    ),
    # Two neighbouring positions of row 5, columns 40 to 43.
    "swapped_positions": (
        _VALUES,
        "  const vec4 values = vec4(ivec4(nibbles) - 8);\n  return row == 5 && k4 == 10 ? values.xzyw : values;",
    ),
    # The scale of the group before, in row 6, column 33 alone.
    "wrong_scale": (
        _PRODUCT,
        (
            "  vec4 result = product;\n"
            "  if (row == 6 && k4 == 8) result.y = values_of(row, k4).y * scale_of(row, 31);\n"
            "  return result;"
        ),
    ),
    # A constant in place of one code: what a read of padding would give.
    "constant": (
        _VALUES,
        "  vec4 values = vec4(ivec4(nibbles) - 8);\n  if (row == 4 && k4 == 2) values.w = 0.0;\n  return values;",
    ),
    # The last row of every lookup takes the index of the first.
    "wrong_index": (
        "write_chunk(chunk, t_indices[place], place);",
        "write_chunk(chunk, t_indices[place == 2 ? 0 : place], place);",
    ),
    "unwritten": ("  t_out[place * chunks + chunk] = bits;", "  if (place != 3) t_out[place * chunks + chunk] = bits;"),
    "write_behind": (
        "  t_out[place * chunks + chunk] = bits;",
        (
            "  t_out[place * chunks + chunk] = bits;\n"
            "  if (place == 0 && chunk == 0) t_out[out_sizes.y * out_sizes.z * out_sizes.w * chunks] = bits;"
        ),
    ),
}


def planted(name: str, directory: Path) -> Path:
    """Write the shader with bug ``name`` into ``directory``; returns the file.

    Raises:
        KeyError: no such bug. ValueError: the text it changes is not in the shader exactly once.
    """
    old, new = BUGS[name]
    text = SHADER.read_text()
    if text.count(old) != 1:
        raise ValueError(f"planted bug {name}: {old!r} is {text.count(old)} times in {SHADER.name}, not once")
    path = directory / f"{name}.comp"
    path.write_text(text.replace(old, new))
    return path
