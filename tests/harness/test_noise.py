"""What torch, torchao and executorch say of themselves at every start does not reach a user; anything else does."""

import subprocess
import sys
import warnings

import pytest

from conformance.harness.noise import keep_out

LIES = """
import logging, warnings
logging.basicConfig()
from conformance.harness.noise import keep_out
{quiet}
import torch, torchao
logging.getLogger("torchao").warning("Failed to load the model")
logging.getLogger("torchao").warning("Failed to load /x/torchao/_C_mxfp8.so: Could not load this library: /x")
import executorch.backends.vulkan.partitioner.vulkan_partitioner as part
part.logger.info("[Vulkan Partitioner] Due to [no dtype], skipping x")
part.logger.info("    et_vk.embedding_q4gsw.default")
part.logger.info("[Vulkan Partitioner] is broken")
"""
TOLD, NEWS = ("_C_mxfp8", "Enum subclass", "Due to [", "    et_vk."), ("Failed to load the model", "is broken")


def said(quiet: str) -> str:
    command = [sys.executable, "-c", LIES.format(quiet=quiet)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_known_lines_are_kept_out_and_others_are_not() -> None:
    text = said("keep_out()")
    assert not [line for line in TOLD if line in text]
    assert all(line in text for line in NEWS), text
    assert all(line in said("") for line in TOLD), "these packages no longer say it: the filter may be dropped"


def test_known_warnings_are_kept_out_and_others_are_not() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keep_out()
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use", FutureWarning, stacklevel=1)
        warnings.warn("scales are wrong", FutureWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["scales are wrong"]


@pytest.mark.parametrize("times", [1, 3])
def test_filters_do_not_pile_up(times: int) -> None:
    import logging

    for _ in range(times):
        keep_out()
    assert len(logging.getLogger("torchao").filters) == 1
