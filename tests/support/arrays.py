"""Moving arrays between reference/ and torch, and comparing them bit for bit."""

import numpy as np
import torch

from reference.arithmetic.bfloat16 import BFLOAT16, to_float


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array["bits"].astype(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view("<u2").view(BFLOAT16)
    return tensor.numpy()


def assert_same_bits(left: np.ndarray, right: np.ndarray, where: object) -> None:
    assert left.dtype == right.dtype, where
    assert left.shape == right.shape, where
    nan = np.isnan(to_float(left))
    assert (nan == np.isnan(to_float(right))).all(), where
    unsigned = f"<u{left.dtype.itemsize}"
    np.testing.assert_array_equal(left.view(unsigned)[~nan], right.view(unsigned)[~nan], str(where))
