"""The oracles: pure numpy, written from docs/contract.md, sharing no code with impl/."""

from typing import Any

import numpy.typing as npt

#: A numpy array of any shape and dtype; docstrings say which.
Array = npt.NDArray[Any]
