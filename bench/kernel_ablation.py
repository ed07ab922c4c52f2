"""What binds the embedding shader: our GLSL with one part taken out or one shape changed at a time.

A shader without its loads or its stores computes nothing useful; it is timed, never judged.
"""

from dataclasses import dataclass
from pathlib import Path

SHADER = Path(__file__).resolve().parent.parent / "vulkan" / "glsl" / "embedding_q4gsw.comp"


@dataclass(frozen=True)
class Ablation:
    """``edits`` replace text of the shader; the rest overrides the dispatch.

    ``constants`` False leaves D and G to be read at run time. ``rows`` and ``local`` are rows an
    invocation and the local size in x, None for the host's own choice.
    """

    name: str
    edits: tuple[tuple[str, str], ...] = ()
    constants: bool = True
    rows: int | None = None
    local: int | None = None


_Edits = tuple[tuple[str, str], ...]
_NO_WEIGHTS: _Edits = (
    (
        "const uint word = t_weight[",
        "const uint word = 0x1234567u * uint(row + k4); const uint unused = t_weight[0 * ",
    ),
    (
        "const uint word = uint(texelFetch(t_weight, ivec2(k4, row >> 3), 0)[row & 3]);",
        "const uint word = 0x1234567u * uint(row + k4);",
    ),
)
_ONE_ROW_SCALES: _Edits = (("return float(t_scales[row", "return float(t_scales[0 * row"),)
_NO_STORES: _Edits = (
    (
        "  t_out[place * chunks + chunk] = bits;",
        "  if (bits == uvec4(1u, 2u, 3u, 4u)) t_out[place * chunks + chunk] = bits;",
    ),
    ("  imageStore(t_out,", "  if (value == vec4(1.0, 2.0, 3.0, 4.0)) imageStore(t_out,"),
)
_NO_GUARD: _Edits = (("return uint(row) < uint(vocab_size);", "return true;"),)
_SEQUENTIAL: _Edits = (
    ("write_chunk(chunk, t_indices[place], place);", "write_chunk(chunk, place % 1024, place);"),
    ("write_chunk(chunk, row, ivec2(y, z));", "write_chunk(chunk, y % 1024, ivec2(y, z));"),
)

ABLATIONS: tuple[Ablation, ...] = (
    Ablation("the host's choice"),
    Ablation("sizes read at run time", constants=False),
    *(Ablation(f"{rows} rows an invocation", rows=rows) for rows in (1, 2, 4, 8)),
    *(Ablation(f"local size {local}", local=local) for local in (32, 64, 128, 256)),
    Ablation("no weight loads", _NO_WEIGHTS),
    Ablation("scales of one row (cached)", _ONE_ROW_SCALES),
    Ablation("no weight loads, scales of one row", (*_NO_WEIGHTS, *_ONE_ROW_SCALES)),
    Ablation("no stores", _NO_STORES),
    Ablation("no check of the index", _NO_GUARD),
    Ablation("rows of a small table, in order (cached)", _SEQUENTIAL),
)


def ablated_source(ablation: Ablation, directory: Path) -> Path:
    """The shader with the edits made, as a file in ``directory``; the shader itself where there are none.

    Raises:
        ValueError: an edit no longer applies.
    """
    text = SHADER.read_text()
    for old, new in ablation.edits:
        if old not in text:
            raise ValueError(f"ablation {ablation.name!r}: {old!r} is not in {SHADER.name}")
        text = text.replace(old, new)
    if not ablation.edits:
        return SHADER
    path = directory / SHADER.name
    path.write_text(text)
    return path
