"""Planted bugs of the embedding shader: each our own GLSL with one place changed.

``planted_source(name, directory)`` writes the changed file and returns its path, ready for
``impl.kernel.run_embedding(shader_source=...)``. A bug that no longer applies to the shader fails loudly.
"""

from dataclasses import dataclass
from pathlib import Path

SHADER = Path(__file__).parent.parent.parent / "vulkan" / "glsl" / "embedding_q4gsw.comp"


@dataclass(frozen=True)
class Bug:
    """``old`` (found exactly once) becomes ``new``; ``caught_by`` is the mechanism meant for it."""

    old: str
    new: str
    caught_by: str


_END = "  const ivec3 reach ="
BUGS: dict[str, Bug] = {
    "nibble_order": Bug("uvec4(4, 0, 12, 8)", "uvec4(0, 4, 8, 12)", "values"),
    "offset": Bug("vec4(ivec4(nibbles) - 8)", "vec4(ivec4(nibbles) - 7)", "values"),
    "row_within_block": Bug("(row & 4) != 0", "(row & 4) == 0", "values"),
    "block_row": Bug("* 4 + (row & 3)]", "* 4 + (row & 1)]", "values"),
    "group_index": Bug("+ column / group()]", "+ (column + 4) / group()]", "values"),
    "scale_of_first_half": Bug("(group() & 7) == 0 ? first", "true ? first", "values"),
    "index_lane": Bug("0)[y & 3]", "0)[(y & 3) ^ 1]", "values"),
    "plane_order": Bug("z % out_sizes.z, z / out_sizes.z", "z / out_sizes.w, z % out_sizes.w", "values"),
    "negative_index": Bug("uint(row) < uint(vocab_size)", "row < vocab_size", "values"),
    "unwritten_tail": Bug("chunk >= embed_dim() / COLUMNS)", "chunk >= embed_dim() / COLUMNS - 1)", "unwritten"),
    "unwritten_row": Bug("if (place < places)", "if (place < places - 1)", "unwritten"),
    "write_behind": Bug(
        _END,
        "#ifndef IO_TEXTURE\n  if (chunk == 0) t_out[out_sizes.x / COLUMNS * out_sizes.y * out_sizes.z * out_sizes.w]"
        " = uvec4(1u);\n#else\n  if (chunk == 0) imageStore(t_out, ivec3(0, out_sizes.y, 0), vec4(1.0));\n#endif\n"
        + _END,
        "guard bands",
    ),
    # Each invocation takes the chunk that its mirror image in the work group left in shared memory, and does not wait.
    "missing_barrier": Bug(
        "void main() {\n  const int chunk = int(gl_GlobalInvocationID.x);",
        "shared int mirrored[64];\n"
        "void main() {\n"
        "  const int tag = int(gl_WorkGroupID.y) << 16;\n"
        "  mirrored[63 - gl_LocalInvocationIndex] = int(gl_GlobalInvocationID.x) ^ tag;\n"
        "  const int chunk = mirrored[gl_LocalInvocationIndex] ^ tag;\n"
        "  if (chunk < 0) return;",
        "unwritten",
    ),
    # No square is 2 modulo 2^32. lavapipe leaves loops after 65,536 rounds in all, so
    # each round is made to last: 5 s for one index there, for ever on a GPU.
    "infinite_loop": Bug(
        _END,
        "  uint turns = uint(out_sizes.x);\n"
        "  while (turns * turns != 2u) {\n"
        "    float slow = float(turns);\n"
        "    [[unroll]] for (int i = 0; i < 200; ++i) slow = sin(slow) + cos(slow * 1.25);\n"
        "    turns = turns * 1664525u + floatBitsToUint(slow);\n"
        "  }\n"
        "  if (turns == 7u) return;\n" + _END,
        "watchdog",
    ),
}


def planted_source(name: str, directory: Path) -> Path:
    """Write the shader with bug ``name`` into ``directory``; returns the file.

    Raises:
        KeyError: no such bug. ValueError: the text it changes is not in the shader exactly once.
    """
    bug, text = BUGS[name], SHADER.read_text()
    if text.count(bug.old) != 1:
        raise ValueError(f"planted bug {name}: {bug.old!r} is {text.count(bug.old)} times in {SHADER.name}, not once")
    path = directory / f"{name}.comp"
    path.write_text(text.replace(bug.old, bug.new))
    return path
