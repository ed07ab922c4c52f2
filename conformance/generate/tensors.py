"""A program as it is drawn, and its tensors: new ones, or shared with an earlier step.

A lookup without defects can be fused; ``defects`` names what is drawn wrong in it. A defect changes the options of a
choice, and as far as possible not which choices there are: Hypothesis shrinks by taking single choices out.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

from reference.program.spec import (
    IDENTITY_OPS,
    OPAQUE_OPS,
    Apply,
    ProgramSpec,
    QuantizedTable,
    Step,
    TensorSpec,
    Values,
)

T = TypeVar("T")
Shape = tuple[int, ...]

#: The operations that keep values.
OPS = IDENTITY_OPS + OPAQUE_OPS
_SEEDS = range(8)
#: Rows and columns: all sizes in order, so that an earlier choice is a smaller table; then those to draw more often.
_ROWS = (*range(1, 34), *(1, 8) * 9, *(2, 7) * 5)
#: Past what a byte, a kernel's block of rows, an image and an index of 16 bits hold; one table that large, used once.
_LARGE = (16384,)
_MANY_ROWS = (257, 1025, 16390, 65540, 131080, 65540, 300, 16390, 131080)
_COLUMNS = (32, 64, 96, 128, 160)
_WIDE: tuple[int, ...] = (1024, 8192)
#: Columns that groups which are no multiple of 4 divide, too.
_ODD_COLUMNS = (32, 64, *(96, 192) * 3)
_WRONG_COLUMNS = (8, 16, 48, 80)
_GROUPS = (32, 4, 8, 12, 16, 20, 24, 48, 64, 96, 128)
_ODD_GROUPS = (2, 1, 3, 6, 3, 6)
_INDICES: tuple[Shape, ...] = ((1,), (2,), (), (5,), (1, 2), (2, 3), (1, 1, 2), (2, 1, 3), (0,), (1,), (), (0,), (65,))
_DEEP_INDICES = ((1, 1, 1, 1), (1, 2, 1, 2))
#: What a lookup's scales and results may be, the types to draw more often twice.
FLOATS = ("float32", "float32", "float16", "bfloat16")
_CONSTANT = ("buffer", "parameter", "non_persistent", "lifted")
_NOT_CONSTANT = ("input", "computed", "mutated")
_ZERO_POINT_DTYPES = ("int8", "int32", "float32", "int16", "uint8", "int64", "float16", "bfloat16", "float64")
_SCALES = ("zeros", "scales", "signed_scales", "special_scales", "bits", "powers_of_two", "one_hot", "scales")


class Draft:
    """A program as far as it is drawn: its steps, and the tensors and tables that later ones may share.

    ``lowered``: it goes through torch.export and on into a file, so that operands are constants and not lifted:
    ExecuTorch's ``to_edge`` gives the numbers that it lifts the names of tensors that are.
    """

    def __init__(self, draw: st.DrawFn, *, lowered: bool = False) -> None:
        self.lowered = lowered
        self.steps: list[Step] = []
        self.tensors: list[TensorSpec] = []
        self.tables: list[QuantizedTable] = []
        self.hidden: list[str] = []
        self._draw = draw
        self._part: Callable[[], Any]
        self._whole_part = st.builds(self._draw_part)  # made once: making one takes as long as ten choices

    def choose(self, options: Sequence[T]) -> T:
        """Choose an option: the simplest comes first, and one that is there twice is drawn more often."""
        return options[self._draw(_position(len(options)))]

    def chance(self, share: int, of: int) -> bool:
        """Choose yes in ``share`` of ``of`` cases; no is simpler."""
        return 1 <= self.choose(range(of)) <= share

    def some(self, counts: Sequence[int], part: Callable[[], T]) -> list[T]:
        """Choose a count, then that many parts, each drawn as a whole: Hypothesis can leave any one out."""
        parts = []
        for _ in range(self.choose(counts)):
            self._part = part
            parts.append(self._draw(self._whole_part))
        return parts

    def _draw_part(self) -> Any:
        return self._part()

    def spec(self) -> ProgramSpec:
        """The program."""
        route = "synthetic" if not self.lowered else "torchao" if self.tables else "export"
        parts = tuple(self.steps), tuple(self.tensors), tuple(self.tables)
        return ProgramSpec(*parts, route=route, hidden=tuple(self.hidden))

    def name(self, kind: str) -> str:
        """The next name of a step of that kind."""
        return f"{kind}{sum(step.name.startswith(kind) for step in self.steps)}"

    def add(
        self, kind: str, dtype: str, shape: Shape, values: Values, source: str, dynamic: Shape = (), bound: int = 0
    ) -> TensorSpec:
        """Add a new tensor; ``kind`` is the start of its name."""
        count = sum(tensor.name.startswith(kind) for tensor in self.tensors)
        self.tensors.append(TensorSpec(f"{kind}{count}", dtype, shape, values, source, dynamic, bound))
        return self.tensors[-1]

    def shared(self, kind: str, usable: Callable[[TensorSpec], bool]) -> TensorSpec | None:
        """An earlier tensor of that kind, or None. A new one is drawn in any case: shrinking can then take it."""
        fitting = [tensor for tensor in self.tensors if tensor.name.startswith(kind) and usable(tensor)]
        share, one = self.chance(2, 3), self.choose(fitting or [None])
        return one if share else None

    def source(self, *, broken: bool) -> str:
        """Where a tensor comes from: a constant, or what is none."""
        return self.choose(_NOT_CONSTANT if broken else _CONSTANT[:3] if self.lowered else _CONSTANT)

    def constant_ops(self, *, opaque: bool) -> tuple[str, ...]:
        """A chain of operations that keep values; an opaque one among them is not looked through."""
        chain = tuple(self.some((0, 1, 2, 0, 0, 0), lambda: self.choose(IDENTITY_OPS)))
        if not opaque:
            return chain
        at = self.choose(range(len(chain) + 1))
        return (*chain[:at], self.choose(OPAQUE_OPS), *chain[at:])


@functools.cache
def _position(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, count - 1)  # what st.sampled_from draws, made once


def float_table(draft: Draft, defects: set[str]) -> QuantizedTable:
    """A table that torchao quantizes: a new one, or an earlier one."""
    odd_group = "group_size" in defects
    share, known = draft.chance(1, 2), draft.choose(draft.tables or [None])
    rows = draft.choose(_ROWS)
    columns = draft.choose(_ODD_COLUMNS if odd_group else (*_COLUMNS, *_COLUMNS[:3]))
    group = draft.choose([size for size in (2, 3, 6) if columns % size == 0] if odd_group else (32, 4, 8, 16, 0))
    dtype = draft.choose(FLOATS)
    values = Values("weights", draft.choose(_SEEDS))
    if share and known:
        return known
    draft.tables.append(QuantizedTable(f"emb{len(draft.tables)}", rows, columns, group, values, dtype))
    return draft.tables[-1]


def table(draft: Draft, defects: set[str], *, packed: bool = False) -> tuple[TensorSpec, int]:
    """A table, int8 [V, D] or packed uint8 [V, D/2], and a group size that divides D."""
    kind, width = ("packed", 2) if packed else ("w", 1)
    own = {"weight_source", "weight_dtype", "weight_values", "embed_dim", "empty_table", "group_size"} & defects
    known = draft.shared(kind, lambda tensor: not own and tensor.shape < _LARGE)
    rows = draft.choose((0,) if "empty_table" in defects else _ROWS)
    narrow: tuple[int, ...] = _WRONG_COLUMNS if "embed_dim" in defects else _COLUMNS
    many, most, wide = draft.chance(1, 12), draft.choose(_MANY_ROWS), draft.chance(1, 24)
    if draft.lowered:  # a lowering takes its time for each; what size does to it is the catalogue's
        pass
    elif many and not own and all(tensor.shape[:1] < _LARGE for tensor in draft.tensors):
        rows, narrow = most, narrow[:1]
    elif wide and not own:
        rows, narrow = min(rows, 9), _WIDE
    columns = draft.choose(_ODD_COLUMNS if "group_size" in defects else narrow)
    longer = [t for t in draft.tensors if t.name.startswith(kind) and t.shape[0] > 1 and t.values.pattern == "uniform"]
    prefix, whole = draft.chance(2, 3), draft.choose(longer or [None])
    if prefix and whole and not own:
        rows, columns = whole.shape[0] // 2, whole.shape[1] * width
    group = _group_size(draft, known.shape[1] * width if known else columns, defects)
    if packed:
        dtype, values = "uint8", Values("uniform", draft.choose(_SEEDS), 0, 255)
    else:
        dtype = draft.choose(("int16", "int32", "uint8") if "weight_dtype" in defects else ("int8",))
        values = _codes(draft, rows * columns, dtype, outside="weight_values" in defects)
    source = draft.source(broken="weight_source" in defects)
    if prefix and whole and not own:  # the first half of an earlier table
        dtype, values = whole.dtype, whole.values
    return known or draft.add(kind, dtype, (rows, columns // width), values, source), group


def _group_size(draft: Draft, columns: int, defects: set[str]) -> int:
    """A group size that divides the columns; with the defect, one that is no multiple of 4."""
    sizes = _ODD_GROUPS if "group_size" in defects else _GROUPS
    return draft.choose([size for size in sizes if columns % size == 0] or [columns])


def _codes(draft: Draft, count: int, dtype: str, *, outside: bool) -> Values:
    """4-bit values of a table, or some outside of [-8, 7]."""
    seed = draft.choose(_SEEDS)
    if dtype == "uint8":
        return Values("uniform", seed, 0, 15)
    if outside and count:
        place, low = draft.choose((0, count // 2, count - 1)), draft.choose((7, -3))
        once = [Values("one_hot", low=low, position=place, value=value) for value in (8.0, -9.0)]
        return draft.choose((*once, Values("uniform", seed, -128, 127)))
    uniform = Values("uniform", seed, -8, 7)
    last = Values("one_hot", low=-8, position=count - 1, value=7.0) if count else Values("zeros")
    others = (Values("ramp", low=-8, high=7), Values("constant", value=-8.0), last)
    return draft.choose((Values("zeros"), uniform, *others, uniform))


def scales(draft: Draft, shape: Shape, defects: set[str], *, packed: bool = False) -> TensorSpec:
    """Scales with one element a group, of that shape unless the defect is the shape."""
    if "scale_shape" in defects:
        shape = draft.choose(((math.prod(shape),), (*shape, 1), (1, *shape)))
    if packed and draft.chance(1, 2) and shape[1] == 1:  # one scale a row
        shape = shape[:1]
    own = {"scale_source", "scale_dtype"} & defects
    known = draft.shared("s", lambda s: s.shape == shape and not own and not (packed and s.dtype == "float64"))
    dtype = draft.choose(("float64",) if "scale_dtype" in defects else FLOATS)
    pattern, seed = draft.choose(_SCALES), draft.choose(_SEEDS)
    values = Values(pattern, seed, 1, 1, 0, 0.5) if all(shape) and pattern != "zeros" else Values("zeros")
    source = draft.source(broken="scale_source" in defects)
    return known or draft.add("s", dtype, shape, values, source)


def zero_point(draft: Draft, shape: Shape, defects: set[str], dtypes: Sequence[str] = _ZERO_POINT_DTYPES) -> str:
    """The name of a zero point with one element a group, or "" for none."""
    if not draft.chance(2, 3) and not any(defect.startswith("zero_point") for defect in defects):
        return ""
    own = {"zero_point_source", "zero_point_values"} & defects
    known = draft.shared("z", lambda z: z.shape == shape and z.dtype in dtypes and not own)
    dtype = draft.choose(dtypes)
    zeros = [Values("zeros")]
    if "zero_point_values" in defects and all(shape):
        last = Values("one_hot", position=math.prod(shape) - 1, value=3.0)
        zeros = [Values("one_hot", position=0, value=1.0), last, Values("constant", value=2.0)]
    elif "float" in dtype:
        zeros.append(Values("constant", value=-0.0))
    values, source = draft.choose(zeros), draft.source(broken="zero_point_source" in defects)
    return (known or draft.add("z", dtype, shape, values, source)).name


def indices(draft: Draft, rows: int, defects: set[str]) -> str:
    """The name of indices into a table of so many rows, or of a step that moves them; with the defect, of rank 4."""
    shape = draft.choose(_DEEP_INDICES if "indices_rank" in defects else _INDICES)
    if not rows:  # an empty table has no index to give
        shape = (*shape[:-1], 0)
    moved = draft.chance(1, 6) and rows > 1
    values = Values("uniform", draft.choose(_SEEDS), 0, max(rows - 1 - moved, 0))
    source = draft.choose(("input", "input", "input", "computed", "buffer", "buffer" if draft.lowered else "lifted"))
    dynamic = draft.choose(((), (0,), tuple(range(len(shape))), ()))
    if source not in {"input", "computed"} or not shape or not rows:
        dynamic = ()
    bounded = draft.chance(1, 2) or draft.lowered  # a file's memory is planned for the largest sizes
    bound = max(17, *shape) if dynamic and bounded else 0
    found = draft.add("i", draft.choose(("int64", "int32")), shape, values, source, dynamic, bound)
    if not moved:
        return found.name
    offset = draft.add("o", found.dtype, (1,) * len(shape), Values("constant", value=1.0), "buffer")
    draft.steps.append(Apply(draft.name("moved"), found.name, "add", other=offset.name))
    return draft.steps[-1].name
