"""Registers the operator, so that the edge dialect knows it. The suite computes it by its reference."""

from typing import Any

import torch

LIBRARY = torch.library.Library("et_vk", "FRAGMENT")
LIBRARY.define(
    "embedding_q4gsw(Tensor weight, Tensor weight_scales, int group_size, Tensor indices, "
    "bool is_linear_weight = False) -> Tensor"
)


def _shape(weight: Any, weight_scales: Any, group_size: int, indices: Any, is_linear_weight: bool = False) -> Any:
    del group_size, is_linear_weight
    return weight_scales.new_empty((*indices.shape, weight.shape[1] * 2), dtype=torch.float32)


LIBRARY.impl("embedding_q4gsw", _shape, "Meta")
