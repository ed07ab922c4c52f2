"""What the matcher says about each lookup of a program: fused, or refused and why.

Source: docs/contract.md section 5.
"""

import enum
from dataclasses import dataclass


class RefusalReason(enum.StrEnum):
    """The condition of contract 5.3 that a refused lookup does not meet.

    When several are not met the report names the first in this order.
    """

    WEIGHT_NOT_CONSTANT = "weight_not_constant"
    WEIGHT_WRITTEN = "weight_written"
    WEIGHT_DTYPE = "weight_dtype"
    WEIGHT_SHAPE = "weight_shape"
    WEIGHT_VALUES = "weight_values"
    QMIN_QMAX = "qmin_qmax"
    BLOCK_SIZE = "block_size"
    EMBED_DIM_NOT_DIVISIBLE_BY_GROUP = "embed_dim_not_divisible_by_group"
    GROUP_SIZE_NOT_MULTIPLE_OF_4 = "group_size_not_multiple_of_4"
    EMBED_DIM_NOT_MULTIPLE_OF_32 = "embed_dim_not_multiple_of_32"
    EMPTY_TABLE = "empty_table"
    SCALE_NOT_CONSTANT = "scale_not_constant"
    SCALE_WRITTEN = "scale_written"
    SCALE_DTYPE = "scale_dtype"
    SCALE_SHAPE = "scale_shape"
    ZERO_POINT_NOT_CONSTANT = "zero_point_not_constant"
    ZERO_POINT_WRITTEN = "zero_point_written"
    ZERO_POINT_NONZERO = "zero_point_nonzero"
    OUTPUT_DTYPE = "output_dtype"
    INDICES_DTYPE = "indices_dtype"
    INDICES_RANK = "indices_rank"
    MAX_NORM = "max_norm"
    TABLE_OPS = "table_ops"
    TABLE_LIMIT = "table_limit"


@dataclass(frozen=True)
class Limits:
    """Limits of the device that the caller wants to run on; None is no limit.

    Attributes:
        max_storage_buffer_range: bytes of one buffer (VkPhysicalDeviceLimits.maxStorageBufferRange);
            the packed table in block layout and its scales must each fit.
        max_image_dimension_2d: texels a side (VkPhysicalDeviceLimits.maxImageDimension2D); the block
            texture is D/4 wide and ceil(V/8) high. Leave it None when the table goes to a buffer.

    Source: contract 5.4, 7.5.
    """

    max_storage_buffer_range: int | None = None
    max_image_dimension_2d: int | None = None


@dataclass(frozen=True)
class Fusion:
    """A lookup that was rewritten to et_vk.embedding_q4gsw.

    Attributes:
        node: the lookup's name in the source program, kept by the node that yields its value in the result.
        table: what the source program calls the table's constant (its key in the state dict or constants).
        packed: placeholder of the packed table in the result: uint8 [V, D/2].
        scales: placeholder of the scales in the result: float16 or float32 [V, D/G].
        group_size: G.
        is_linear_weight: the layout of ``packed`` (contract 1): always True here.
        output_dtype: "float32", or "float16" or "bfloat16" when a cast follows the operator.
        vocab_size: V.
        embed_dim: D.
    """

    node: str
    table: str
    packed: str
    scales: str
    group_size: int
    is_linear_weight: bool
    output_dtype: str
    vocab_size: int
    embed_dim: int


@dataclass(frozen=True)
class Refusal:
    """A lookup that was left as it is.

    Attributes:
        node: the lookup's name in the source program; one inside a control-flow branch is "branch/name".
        reason: the first condition that does not hold.
        detail: which node and which value, and what would be allowed.
    """

    node: str
    reason: RefusalReason
    detail: str


@dataclass(frozen=True)
class FusionReport:
    """Every quantized lookup of a program, in graph order, either fused or refused.

    A lookup into a plain float table, or one through an operator of another width
    (embedding_byte, embedding_2bit), is not a 4-bit lookup and appears in neither.
    """

    fused: tuple[Fusion, ...] = ()
    refused: tuple[Refusal, ...] = ()
