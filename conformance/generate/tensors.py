"""The tensors of generated programs: drawn anew, or shared with an earlier step.

Source: docs/contract.md 5.3 and 5.4.
"""

from collections.abc import Callable, Sequence
from typing import Any

from reference.program.spec import IDENTITY_OPS, OPAQUE_OPS, TensorSpec, Values

CONSTANT = ("buffer", "parameter", "non_persistent", "lifted")
NOT_CONSTANT = ("input", "computed", "mutated")
_SHAPES: tuple[tuple[int, ...], ...] = ((5,), (1,), (0,), (), (2, 3), (2, 1, 3))
_ZERO_POINT_DTYPES = ("int8", "int32", "float32", "int16", "uint8", "int64", "float16", "bfloat16", "float64")


class Shelf:
    """The tensors drawn so far. ``pick`` makes every choice."""

    def __init__(self, pick: Callable[[Sequence[Any]], Any]) -> None:
        self.pick = pick
        self.tensors: list[TensorSpec] = []

    def add(
        self,
        kind: str,
        dtype: str,
        shape: tuple[int, ...],
        values: Values,
        source: str,
        dynamic: tuple[int, ...] = (),
    ) -> TensorSpec:
        """Put a new tensor on the shelf; ``kind`` is the start of its name."""
        count = sum(t.name.startswith(kind) for t in self.tensors)
        tensor = TensorSpec(f"{kind}{count}", dtype, shape, values, source, dynamic)
        self.tensors.append(tensor)
        return tensor

    def shared(self, kind: str, shape: tuple[int, ...] | None = None, dtype: str = "") -> TensorSpec | None:
        """An earlier tensor of that kind (shape and dtype where given), or None for a new one."""
        fitting = [
            t
            for t in self.tensors
            if t.name.startswith(kind) and shape in (None, t.shape) and (not dtype or dtype == t.dtype)
        ]
        if not fitting or not self.pick((False, True, True)):
            return None
        found: TensorSpec = self.pick(fitting)
        return found

    def source(self, *, broken: bool) -> str:
        """Where a tensor comes from: a constant, or what is none."""
        found: str = self.pick(NOT_CONSTANT if broken else CONSTANT)
        return found


def constant_ops(pick: Callable[[Sequence[Any]], Any], *, opaque: bool) -> tuple[str, ...]:
    """A chain of operations that keep values; an opaque one among them is not looked through."""
    chain = tuple(pick(IDENTITY_OPS) for _ in range(pick((0, 0, 0, 1, 0, 2))))
    if not opaque:
        return chain
    at = pick(range(len(chain) + 1))
    return (*chain[:at], pick(OPAQUE_OPS), *chain[at:])


def weight(shelf: Shelf, defects: set[str], *, packed: bool = False) -> TensorSpec:
    """The table: int8 [V, D], or packed uint8 [V, D/2]."""
    pick = shelf.pick
    kind = "packed" if packed else "w"
    wanted = {d for d in defects if d.startswith("weight") or d in {"embed_dim", "empty_table", "group_size"}}
    known = None if wanted - {"weight_ops"} else shelf.shared(kind)
    if known is not None:
        return known
    columns = pick((16, 48, 80, 8)) if "embed_dim" in defects else pick((64, 32, 96, 128, 160))
    if "group_size" in defects:
        columns = pick((96, 96, 192))
    rows = 0 if "empty_table" in defects else pick((9, 1, 2, 7, 8, 16, 33))
    source = shelf.source(broken="weight_source" in defects)
    if packed:
        return shelf.add(kind, "uint8", (rows, columns // 2), Values("uniform", pick(range(8)), 0, 255), source)
    dtype = pick(("int16", "int32", "uint8")) if "weight_dtype" in defects else "int8"
    seed = pick(range(8))
    if dtype == "uint8":
        values = Values("uniform", seed, 0, 15)
    elif "weight_values" in defects and rows:
        place = pick((0, rows * columns - 1, rows * columns // 2))
        values = pick(
            (
                Values("one_hot", low=-3, position=place, value=8.0),
                Values("one_hot", low=7, position=place, value=-9.0),
                Values("uniform", seed, -128, 127),
            )
        )
    else:
        values = pick(
            (
                Values("uniform", seed, -8, 7),
                Values("uniform", seed, -8, 7),
                Values("ramp", 0, -8, 7),
                Values("zeros"),
                Values("constant", value=-8.0),
                Values("one_hot", low=-8, position=max(rows * columns - 1, 0), value=7.0) if rows else Values("zeros"),
            )
        )
    return shelf.add(kind, dtype, (rows, columns), values, source)


def scales(shelf: Shelf, shape: tuple[int, ...], defects: set[str], *, packed: bool = False) -> TensorSpec:
    """Scales with one element a group, of that shape unless the defect is the shape."""
    pick = shelf.pick
    if "scale_shape" in defects:
        count = 1
        for size in shape:
            count *= size
        shape = pick(((count,), (*shape, 1), (1, *shape)))
    known = None if {"scale_source", "scale_dtype"} & defects else shelf.shared("s", shape)
    if known is not None and not (packed and known.dtype == "float64"):
        return known
    wide = ("bfloat16",) if packed else ("bfloat16", "float64")
    dtype = pick(wide) if "scale_dtype" in defects else pick(("float32", "float32", "float16"))
    pattern = pick(("scales", "scales", "signed_scales", "special_scales", "bits", "powers_of_two", "zeros", "one_hot"))
    values = Values(pattern, pick(range(8)), 1, 1, 0, 0.5) if all(shape) else Values("zeros")
    return shelf.add("s", dtype, shape, values, shelf.source(broken="scale_source" in defects))


def zero_point(shelf: Shelf, shape: tuple[int, ...], defects: set[str], dtype: str = "") -> str:
    """The name of a zero point with one element a group, or "" for none. ``dtype`` fixes its dtype."""
    pick = shelf.pick
    wrong = {d for d in defects if d.startswith("zero_point")}
    if not wrong and not dtype and pick((False, True, False)):
        return ""
    count = 1
    for size in shape:
        count *= size
    known = None if wrong - {"zero_point_ops"} else shelf.shared("z", shape, dtype)
    if known is not None:
        return known.name
    chosen = dtype or pick(_ZERO_POINT_DTYPES)
    if "zero_point_values" in defects and count:
        values = pick(
            (
                Values("one_hot", position=0, value=1.0),
                Values("one_hot", position=count - 1, value=3.0),
                Values("constant", value=2.0),
            )
        )
    elif "float" in chosen:
        values = pick((Values("zeros"), Values("constant", value=-0.0)))
    else:
        values = Values("zeros")
    return shelf.add("z", chosen, shape, values, shelf.source(broken="zero_point_source" in defects)).name


def indices(shelf: Shelf, rows: int, *, deep: bool) -> str:
    """The name of indices into a table of so many rows; ``deep`` ones have rank 4."""
    pick = shelf.pick
    shapes = ((1, 2, 1, 2),) if deep else _SHAPES
    shape = pick(shapes if rows else [(*s[:-1], 0) for s in shapes if s])  # an empty table has no index to give
    values = Values("uniform", pick(range(8)), 0, max(rows - 1, 0))
    source = pick(("input", "input", "input", "computed", "lifted", "buffer"))
    ways = [(), (), (0,), tuple(range(len(shape)))] if source in {"input", "computed"} and shape else [()]
    return shelf.add("i", pick(("int64", "int32")), shape, values, source, pick(ways)).name
