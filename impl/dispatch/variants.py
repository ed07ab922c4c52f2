"""The 24 variants of the embedding shader and the two of the prepack shader, as data.

Source: docs/contract.md section 7.1.
"""

from dataclasses import dataclass, replace
from typing import Literal

from impl.errors import DeviceLacksFeature
from impl.gpu.info import DeviceInfo

FloatName = Literal["float32", "float16"]
WeightLayout = Literal["flat", "block"]
WeightStorage = Literal["buffer", "texture2d"]
IoStorage = Literal["buffer", "texture3d"]

_FLOATS: tuple[FloatName, ...] = ("float32", "float16")
_WEIGHTS: tuple[tuple[WeightLayout, WeightStorage], ...] = (
    ("flat", "buffer"),
    ("block", "buffer"),
    ("block", "texture2d"),
)
_IO: tuple[IoStorage, ...] = ("buffer", "texture3d")
_SHORT = {"float32": "f32", "float16": "f16"}


@dataclass(frozen=True)
class Variant:
    """One compiled form of the embedding shader.

    ``float_modes`` "declared" declares every float execution mode that the device allows (contract
    3.4), "none" declares nothing; both are the same source.
    """

    output_dtype: FloatName
    scale_dtype: FloatName
    weight_layout: WeightLayout
    weight_storage: WeightStorage
    io_storage: IoStorage
    float_modes: Literal["declared", "none"] = "declared"

    @property
    def name(self) -> str:
        """A stable name such as "block-buffer-f16out-f32scale-buffer"; "-nomodes" ends it where nothing is declared."""
        dtypes = f"{_SHORT[self.output_dtype]}out-{_SHORT[self.scale_dtype]}scale"
        suffix = "-nomodes" if self.float_modes == "none" else ""
        return f"{self.weight_layout}-{self.weight_storage}-{dtypes}-{self.io_storage}{suffix}"

    @property
    def defines(self) -> tuple[str, ...]:
        """The defines of vulkan/glsl/embedding_q4gsw.comp."""
        defines = {
            "OUT_HALF": self.output_dtype == "float16",
            "SCALES_HALF": self.scale_dtype == "float16",
            "WEIGHT_BLOCK": self.weight_layout == "block",
            "WEIGHT_TEXTURE": self.weight_storage == "texture2d",
            "IO_TEXTURE": self.io_storage == "texture3d",
        }
        return tuple(name for name, on in defines.items() if on)

    @property
    def features(self) -> tuple[str, ...]:
        """The device features that this variant cannot do without."""
        needs = ["shaderFloat16"] if self.output_dtype == "float16" else []
        return (*needs, "storageBuffer16BitAccess") if self.scale_dtype == "float16" else tuple(needs)


#: Every variant with its float modes declared; ``dataclasses.replace(v, float_modes="none")`` is the other form.
VARIANTS: tuple[Variant, ...] = tuple(
    Variant(output, scale, layout, storage, io)
    for layout, storage in _WEIGHTS
    for output in _FLOATS
    for scale in _FLOATS
    for io in _IO
)


def variant_named(name: str) -> Variant:
    """The variant of that name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    by_name = {v.name: v for v in VARIANTS}
    by_name |= {f"{v.name}-nomodes": replace(v, float_modes="none") for v in VARIANTS}
    if name not in by_name:
        raise ValueError(
            f"unknown variant {name!r}: known are {', '.join(v.name for v in VARIANTS)}, each also with -nomodes"
        )
    return by_name[name]


def check_features(info: DeviceInfo, variant: Variant) -> None:
    """Raise DeviceLacksFeature where the device does not have what ``variant`` needs; it names the features."""
    if missing := missing_features(info, variant):
        raise DeviceLacksFeature(f"{info.name} lacks {', '.join(missing)}, which {variant.name} needs")


def missing_features(info: DeviceInfo, variant: Variant) -> tuple[str, ...]:
    """The features that ``variant`` needs and the device does not have."""
    return tuple(feature for feature in variant.features if feature not in info.features)
