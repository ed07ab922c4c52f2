"""Packs int4 values two to a byte."""

from typing import Any

import torch


def pack_4bit_weight_tensor(values: Any, inner_dim_padding: None = None) -> Any:
    """Return int8 [V, D] values as uint8 [V, D/2]: the odd column in the upper nibble."""
    del inner_dim_padding
    codes = (values + 8).to(torch.uint8)
    return codes[:, 1::2] << 4 | codes[:, ::2]
