"""A small model of a published architecture, as a question: its shape, how it is quantized, and how it is called.

Source: docs/contract.md 6.4.
"""

import re
from dataclasses import dataclass

#: What ``conformance.models.zoo`` builds.
KINDS = ("decoder", "encoder", "sequence", "speech", "images")
RECIPES = (
    "float",
    "int4",
    "int4_by_row",
    "int4_embedding",
    "int8_and_int4_embedding",
    "8da4w",
    "8da8w",
    "hqq",
    "qat",
    "et_8bit",
    "et_4bit",
    "et_2bit",
)
_WORDS = re.compile(r"[\w ./-]*", re.ASCII)
NORMS, MLPS, BIASES = ("rms", "rms_plus_one", "layer"), ("silu", "gelu", "plain", "erf", "relu"), ("none", "qkv", "all")


@dataclass(frozen=True)
class Shape:
    """What one model has that another has not; sizes are small, operators are those of the published model.

    Attributes:
        vocab, width, layers, heads, kv_heads, hidden: sizes as papers name them.
        length: rows that the cache holds.
        norm: "rms", "rms_plus_one" (Gemma's) or "layer".
        mlp: "silu" or "gelu" (gated), "plain" (GPT-2's, its gelu written out), "erf" (BERT's gelu) or "relu" (T5's).
        rotary: columns of a head that are rotated; 0: positions come from elsewhere.
        bias: of linears: "none", "qkv" (Qwen's) or "all".
        tied: the head reads the table of the embedding.
        scaled: the embedding is multiplied by sqrt(width).
        learned: rows of a table of learned positions.
        parallel: attention and mlp read the same rows (Phi's).
        convolution: every other layer is a short convolution (LFM2's).
        experts: of which two count for a row; 0: one mlp.
    """

    vocab: int = 512
    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 128
    length: int = 16
    norm: str = "rms"
    mlp: str = "silu"
    rotary: int = 16
    bias: str = "none"
    tied: bool = False
    scaled: bool = False
    learned: int = 0
    parallel: bool = False
    convolution: bool = False
    experts: int = 0


@dataclass(frozen=True)
class Model:
    """Stage RUN: a model, lowered, and called once for each of ``calls``, which are numbers of rows.

    Attributes:
        kind: of ``KINDS``.
        shape: its sizes and parts.
        recipe: of ``RECIPES``: how torchao or ExecuTorch quantizes it.
        dtype: of its weights.
        calls: rows of each call; state lives from call to call.
        dynamic: the file takes any number of rows; otherwise all calls have the same.
        lookups, linears: how many 4-bit ones have to be a delegate's.
        refused: words that the lowering may refuse the model with; "": it has to lower it.
    """

    kind: str = "decoder"
    shape: Shape = Shape()
    recipe: str = "int4"
    dtype: str = "float32"
    calls: tuple[int, ...] = (5, 3)
    dynamic: bool = True
    lookups: int = 1
    linears: int = 0
    refused: str = ""


def check_model(model: Model) -> None:
    """Raise ValueError where a model has words or sizes that it cannot have; names the field."""
    if not _WORDS.fullmatch(model.refused):
        raise ValueError(f"model.refused {model.refused!r} is not words")
    shape = model.shape
    sizes = {name: value for name, value in vars(shape).items() if type(value) is int}
    if low := [name for name, value in sizes.items() if value < (name not in {"rotary", "learned", "experts"})]:
        raise ValueError(f"model.shape.{low[0]} is {sizes[low[0]]}")
    if shape.width % shape.heads or shape.heads % shape.kv_heads:
        raise ValueError("model.shape: heads have to divide width, and kv_heads heads")
    for name, words in (("norm", NORMS), ("mlp", MLPS), ("bias", BIASES)):
        if getattr(shape, name) not in words:
            raise ValueError(f"model.shape.{name} {getattr(shape, name)!r} is not one of {', '.join(words)}")
    if not model.calls or min(model.calls) < 1 or sum(model.calls) > shape.length:
        raise ValueError(f"model.calls {list(model.calls)} have to be of at least one row, {shape.length} in all")
    if not model.dynamic and len(set(model.calls)) > 1:
        raise ValueError("model.calls of a static model have one number of rows")
